from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kexue_train.artifacts import check_files, read_manifest, verify_artifact
from kexue_train.errors import ArtifactError, ConfigError, CorpusError
from kexue_train.samples.config import TokenizerConfig
from kexue_train.samples.tokenizer import iter_text_blocks, load_tokenizer, train_tokenizer

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "manifest.json")


def test_special_tokens_are_the_first_five_and_the_size_is_kept(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    assert [tokenizer.id_to_token(i) for i in range(5)] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.get_vocab_size() == 256
    pieces = (tokenizer_folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert pieces == [tokenizer.id_to_token(i) for i in range(256)]


def test_pairs_get_the_template_of_bert(tokenizer_folder: Path) -> None:
    encoding = load_tokenizer(tokenizer_folder).encode("Boats", "公园")
    assert [encoding.tokens[0], encoding.tokens[-1]] == ["[CLS]", "[SEP]"]
    assert encoding.tokens[-4:] == ["[SEP]", "公", "园", "[SEP]"]
    assert encoding.type_ids == [0] * (len(encoding.ids) - 3) + [1] * 3


def test_training_twice_gives_the_same_bytes(tmp_path: Path, text_shards: Path, tokenizer_folder: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=256), text_shards, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tokenizer_folder / name).read_bytes()


def test_a_second_call_does_nothing(text_shards: Path, tokenizer_folder: Path) -> None:
    before = [(tokenizer_folder / name).stat().st_mtime_ns for name in FILES]
    manifest = train_tokenizer(TokenizerConfig(vocab_size=256), text_shards, tokenizer_folder)
    assert manifest == verify_artifact(tokenizer_folder)
    assert [(tokenizer_folder / name).stat().st_mtime_ns for name in FILES] == before


def test_statistics_describe_the_vocabulary(tokenizer_folder: Path) -> None:
    facts = read_manifest(tokenizer_folder).statistics
    assert facts["vocab_size"] == 256
    assert facts["special_token_ids"] == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert 0 <= facts["unknown_rate"] < 0.01
    assert 1 < facts["bytes_per_token"] < 8


def test_a_vocabulary_beyond_the_data_is_refused_with_the_size_that_works(tmp_path: Path, text_shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.vocab_size=50000: .* yield only \d+ pieces") as caught:
        train_tokenizer(TokenizerConfig(vocab_size=50_000), text_shards, tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()
    size = int(re.search(r"set tokenizer\.vocab_size=(\d+)", str(caught.value))[1])
    train_tokenizer(TokenizerConfig(vocab_size=size), text_shards, tmp_path / "tokenizer")


def test_only_so_much_text_is_read(text_shards: Path) -> None:
    everything = "\n".join(iter_text_blocks(text_shards, 1 << 40, block_bytes=100))
    first = "\n".join(iter_text_blocks(text_shards, 1000, block_bytes=100))
    rest = "\n".join(iter_text_blocks(text_shards, 1 << 40, skip_bytes=1000, block_bytes=100))
    assert first + "\n" + rest == everything
    assert 1000 <= len(first.encode()) < 3000


def test_case_is_kept_if_asked_for(tmp_path: Path, text_shards: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=256, lowercase=False), text_shards, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert tokenizer.token_to_id("D") is not None
    assert tokenizer.encode("Document").ids != tokenizer.encode("document").ids


@pytest.mark.parametrize("documents", [[""], ["", " \n "]])
def test_shards_without_text_are_refused(tmp_path: Path, write_text_shards: Callable, documents: list[str]) -> None:
    shards = write_text_shards(tmp_path / "shards", documents)
    with pytest.raises(CorpusError, match="hold no text"):
        train_tokenizer(TokenizerConfig(vocab_size=64), shards, tmp_path / "tokenizer")


@pytest.mark.parametrize("token", ["[MASK]", "[PAD]"])
def test_a_vocabulary_without_a_special_token_is_refused(tmp_path: Path, tokenizer_folder: Path, token: str) -> None:
    folder = Path(shutil.copytree(tokenizer_folder, tmp_path / "tokenizer"))
    text = (folder / "tokenizer.json").read_text(encoding="utf-8").replace(token, "[OTHER]")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=re.escape(f"lacks {token}")):
        load_tokenizer(folder)


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not a tokenizer file"):
        load_tokenizer(tmp_path)


def test_padding_must_be_zero(tmp_path: Path, tokenizer_folder: Path) -> None:
    raw = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = raw["model"]["vocab"]
    vocab["[PAD]"], vocab["[MASK]"] = 4, 0
    raw["added_tokens"] = []
    raw["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"\[PAD\] has id 4"):
        load_tokenizer(tmp_path)


@pytest.mark.slow
def test_transformers_opens_the_folder(tokenizer_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours, theirs = load_tokenizer(tokenizer_folder), transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    encoded = theirs("The boats came.", "今天[MASK]")
    assert encoded["input_ids"] == ours.encode("The boats came.", "今天[MASK]").ids
    assert encoded["token_type_ids"] == ours.encode("The boats came.", "今天[MASK]").type_ids
    assert (theirs.pad_token_id, theirs.cls_token, theirs.sep_token, theirs.mask_token_id) == (0, "[CLS]", "[SEP]", 4)
    assert theirs.decode(encoded["input_ids"], skip_special_tokens=True) == "the boats came. 今 天"
    check_files(tokenizer_folder, read_manifest(tokenizer_folder))
