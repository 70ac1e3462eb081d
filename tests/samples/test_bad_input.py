"""What becomes of documents and settings that nobody hoped for; the table in docs/samples.md says the same."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.errors import ArtifactError, ConfigError, CorpusError
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig
from kexue_train.samples.tokenizer import load_tokenizer
from kexue_train.samples.verify import verify_sample_shards
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus

CONFIG = SampleConfig(seq_len=64)
Build = Callable[..., dict[str, Any]]


@pytest.fixture
def build(tmp_path: Path, write_text_shards: Callable[..., Path], tokenizer_folder: Path) -> Build:
    """Makes samples of texts; returns the verified statistics."""

    def build(texts: list[str], num_shards: int = 1, config: SampleConfig = CONFIG) -> dict[str, Any]:
        shards = write_text_shards(tmp_path / "shards", texts, num_shards)
        build_samples(config, shards, tokenizer_folder, tmp_path / "samples", seed=0, executor=LocalExecutor())
        return verify_sample_shards(tmp_path / "samples").statistics

    return build


def ids_of(text: str, tokenizer_folder: Path) -> list[int]:
    """What the tokenizer itself makes of ``text``."""
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.encode_special_tokens = True  # "[SEP]" in a text is text
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_documents_of_one_character_are_single_sequences(build: Build) -> None:
    facts = build(["a", "b", "好", "1"] * 5)
    assert facts["single_documents"] == facts["single_sequences"] == facts["sequences"] == 20
    assert facts["document_tokens"] == 20


@pytest.mark.parametrize(
    "text",
    [
        "!!!",
        ". . .",
        "。！？",
        "\x00a\x00b\x00",
        "😀👩‍👩‍👧",
        r"\ud83d",
        "שלום עולם",
        "a\u202eb",
        "[SEP][PAD] [MASK]",
        "a" * 999,
    ],
)
def test_strange_documents_become_what_the_tokenizer_makes_of_them(
    tmp_path: Path, build: Build, tokenizer_folder: Path, text: str
) -> None:
    build([text] * 3, config=SampleConfig(seq_len=64, nsp=False))
    rows = read_shard(shard_paths(tmp_path / "samples")[0]).column("input_ids").to_pylist()
    found = [token for row in rows for token in row if token]
    cls, sep = (load_tokenizer(tokenizer_folder).token_to_id(token) for token in ("[CLS]", "[SEP]"))
    assert found == [cls, *ids_of(text, tokenizer_folder), sep] * 3


@pytest.mark.parametrize("blank", ["", " ", " \n\t\u3000", "\x00", "\u200b\x00"])
def test_documents_without_a_token_are_counted_and_leave_nothing(
    build: Build, tokenizer_folder: Path, blank: str
) -> None:
    text = "One boat. Two boats."
    facts = build([text] * 10 + [blank] * 5)
    assert (facts["documents"], facts["empty_documents"]) == (15, 5)
    assert facts["document_tokens"] == 10 * len(ids_of(text, tokenizer_folder))


@pytest.mark.parametrize("documents", [[" "] * 30, ["boats and boats", *[""] * 9]])
def test_nothing_to_train_on_is_refused(tmp_path: Path, build: Build, documents: list[str]) -> None:
    with pytest.raises(CorpusError, match="documents to train on hold no token"):
        build(documents)
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("documents", [[], ["One boat."]])
def test_too_few_documents_to_hold_one_out_are_refused(build: Build, documents: list[str]) -> None:
    with pytest.raises(CorpusError, match=f": {len(documents)} documents.*cannot be split"):
        build(documents)


def test_a_shard_of_one_document_has_no_other_for_a_negative_pair(build: Build) -> None:
    facts = build(["One boat came. Two boats went. " * 20] * 2)  # one is held out
    assert facts["pairs"] > 5
    assert facts["negative_pairs"] == 0


def test_shards_of_one_document_each_and_an_empty_one_are_made(build: Build, tmp_path: Path) -> None:
    facts = build(["One boat came. Two boats went. " * 9] * 3, 4)
    assert facts["negative_pairs"] == 0
    assert [read_shard(path).num_rows > 0 for path in shard_paths(tmp_path / "samples")] == [True, True, True, False]


def test_escaped_surrogates_become_their_character_and_single_ones_are_refused(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    lines = [r'{"text": "One boat. \ud83d\ude00 Two boats."}'] * 20 + [r'{"text": "A \ud83d boat"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    shards, out = tmp_path / "shards", tmp_path / "samples"
    config = ShuffleConfig(on_bad_record="skip")
    shuffled = shuffle_corpus(config, [str(tmp_path / "in.jsonl")], shards, seed=0, executor=LocalExecutor())
    assert sum(sum(entry.rejected.values()) for entry in shuffled.inputs) == 1
    assert read_shard(shard_paths(shards)[0]).column("text")[0].as_py() == "One boat. 😀 Two boats."
    build_samples(CONFIG, shards, tokenizer_folder, out, seed=0, executor=LocalExecutor())
    assert verify_sample_shards(out).statistics["documents"] == 20


@pytest.mark.parametrize("token", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
def test_a_vocabulary_without_a_special_token_is_refused(
    tmp_path: Path, text_shards: Path, tokenizer_folder: Path, token: str
) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8").replace(token, "[OTHER]")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=re.escape(token)):
        build_samples(CONFIG, text_shards, folder, tmp_path / "samples", seed=0, executor=LocalExecutor())
    assert not (tmp_path / "samples").exists()


def test_rows_longer_than_the_model_takes_are_refused_before_any_work() -> None:
    values = {"name": "x", "corpus": {"inputs": ["x.txt"]}, "train": {"steps": 5000}, "samples": {"seq_len": 513}}
    with pytest.raises(ConfigError, match=r"samples.seq_len=513 is longer than model.max_position_embeddings=512"):
        RunConfig.parse(values, where="run.yaml")


@pytest.mark.parametrize("seq_len", [15, 32_769])
def test_rows_too_short_or_too_long_to_be_stored_are_refused(seq_len: int) -> None:
    with pytest.raises(ConfigError, match=f"seq_len={seq_len}"):
        SampleConfig.parse({"seq_len": seq_len}, where="run.yaml")


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["a", "!", "图书馆里。", "One boat came. ", "\x00", "😀"], ids=json.dumps)
@pytest.mark.parametrize("nsp", [True, False])
def test_a_document_of_ten_megabytes_is_one_among_others(build: Build, unit: str, nsp: bool) -> None:
    others = ["One boat came. Two boats went."] * 20
    config = SampleConfig(seq_len=512, nsp=nsp)
    facts = build([*others, unit * (10_000_000 // len(unit.encode()))], config=config)
    assert facts["documents"] == 21
    assert facts["fill"] > 0.98 or facts["document_tokens"] < 1000
