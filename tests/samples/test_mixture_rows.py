"""Sample rows of a mixture: every token is of the source that its script says, one English and one Chinese."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from kexue_train.corpus.config import CorpusConfig
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.artifacts import Manifest, read_manifest
from kexue_train.foundation.errors import ArtifactError
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.sample_shard import ShardTask, make_sample_shard
from kexue_train.samples.schema import SOURCE_COLUMNS
from kexue_train.samples.shard_texts import source_numbers, text_column, text_hashes
from kexue_train.samples.tokenizer import load_tokenizer, train_tokenizer
from kexue_train.samples.verify import find_wrong_source, verify_sample_shards
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus
from tests.samples.conftest import CHINESE, ENGLISH
from tests.shuffle.conftest import write_jsonl

SOURCES = ("english", "chinese")
ASCII_ENDS = str.maketrans("，。！？；", ",.!?;")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """A folder with ``shards``, ``tokenizer`` and ``samples`` of two sources that share no character but marks."""
    folder = tmp_path_factory.mktemp("mixed")
    pure = ["".join(char for char in text if not (char.isascii() and char.isalnum())) for text in CHINESE]
    english = [f"{ENGLISH[i % 3]} Number {'x' * (i % 9)}. {ENGLISH[(i + 1) % 3]}" for i in range(90)]
    chinese = [f"{pure[i % 2]}第{'一二三四五六七八九'[i % 9]}篇文章。{pure[(i + 1) % 2]}" for i in range(40)]
    entries = [
        {"name": name, "inputs": [str(write_jsonl(folder / f"{name}.jsonl", texts))], "weight": weight}
        for name, texts, weight in zip(SOURCES, (english, chinese), (1.0, 1.5), strict=True)
    ]
    sources = CorpusConfig.parse({"sources": entries}, where="test").sources
    shuffle_corpus(ShuffleConfig(shards=2), sources, folder / "shards", seed=3, executor=LocalExecutor(1))
    train_tokenizer(TokenizerConfig(vocab_size=220), folder / "shards", folder / "tokenizer")
    build(folder, "samples")
    return folder


def build(folder: Path, name: str, **settings) -> Manifest:
    config = SampleConfig(**{"seq_len": 48, "heldout_fraction": 0.2} | settings)
    return build_samples(
        config, folder / "shards", folder / "tokenizer", folder / name, seed=3, executor=LocalExecutor(1)
    )


def source_of(token: str) -> str | None:
    """The source of a piece by its characters; None for marks, which both have."""
    letters = [char for char in token.removeprefix("##") if char.isalnum() and token != "[UNK]"]
    return None if not letters else "english" if letters[0].isascii() else "chinese"


def segments_of(folder: Path):
    """Yield (held out, row, label, which, source by its number, tokens) of every segment."""
    manifest, tokenizer = read_manifest(folder), load_tokenizer(folder / "tokenizer")
    rows = [row for path in shard_paths(folder) for row in read_shard(path).to_pylist()]
    for number, row in enumerate(rows):
        start = 0
        columns = [row[name] for name in ("sequence_lengths", "segment_a_lengths", "next_sentence_labels")]
        for length, a, label, *numbers in zip(*columns, *(row[name] for name in SOURCE_COLUMNS), strict=True):
            parts = {"a": (start + 1, start + a - 1)} | ({"b": (start + a, start + length - 1)} if label >= 0 else {})
            for (which, (low, high)), source in zip(parts.items(), numbers, strict=False):
                yield (
                    number < manifest.statistics["heldout_rows"],
                    number,
                    label,
                    which,
                    SOURCES[source],
                    [tokenizer.id_to_token(id_) for id_ in row["input_ids"][low:high]],
                )
            start += length


@pytest.mark.parametrize("shuffle", ["shard", "global"])
def test_every_token_is_of_the_source_of_its_segment(mixed, shuffle):
    name = "samples" if shuffle == "shard" else "global"
    manifest = build(mixed, name, shuffle=shuffle)
    expected = {source: Counter(dict.fromkeys(manifest.statistics["sources"][source], 0)) for source in SOURCES}
    rows: set[tuple[int, str]] = set()
    mixed_pairs = 0
    for is_heldout, row, label, which, source, tokens in segments_of(mixed / name):
        assert {source_of(token) for token in tokens} <= {None, source}
        is_copied = which == "b" and label == 1
        kind = "heldout_tokens" if is_heldout else "copied_tokens" if is_copied else "document_tokens"
        counts = {kind: len(tokens)} | ({} if is_heldout or which == "b" else {"sequences": 1})
        if (row, source) not in rows:
            counts["heldout_rows" if is_heldout else "rows"] = 1
        rows.add((row, source))
        expected[source].update(counts)
        mixed_pairs += is_copied
    assert mixed_pairs
    assert manifest.statistics["sources"] == expected
    verify_sample_shards(mixed / name)


def test_documents_are_counted_by_source(mixed):
    shards, samples = (read_manifest(mixed / name).statistics for name in ("shards", "samples"))
    told = samples["source_documents"]
    assert {name: entry["documents"] for name, entry in told.items()} == {"english": 90, "chinese": 60}
    assert {name: entry["documents"] for name, entry in shards["sources"].items()} == {"english": 90, "chinese": 60}
    first = read_shard(shard_paths(mixed / "shards")[0]).column("source").to_pylist()[: samples["heldout_documents"]]
    assert {name: entry["heldout_documents"] for name, entry in told.items()} == {s: first.count(s) for s in SOURCES}


def test_no_copy_of_a_held_out_document_is_trained_on(mixed):
    rows = [
        row
        for path in shard_paths(mixed / "shards")
        for row in zip(*(read_shard(path).column(name).to_pylist() for name in ("text", "source")), strict=True)
    ]
    samples = read_manifest(mixed / "samples").statistics
    heldout, rest = rows[: samples["heldout_documents"]], rows[samples["heldout_documents"] :]
    copies = Counter(source for text, source in rest if text in {text for text, _ in heldout})
    assert copies["chinese"]
    told = samples["source_documents"]
    assert {name: entry["left_out_documents"] for name, entry in told.items()} == {s: copies[s] for s in SOURCES}
    assert samples["left_out_documents"] == copies.total()
    trained = Counter(source for text, source in rest if text not in {text for text, _ in heldout})
    assert trained.total() == samples["documents"] - samples["heldout_documents"] - copies.total()


def test_but_for_the_sources_the_rows_are_those_of_the_same_texts_without(mixed, tmp_path):
    (tmp_path / "scratch").mkdir()
    heldout = read_manifest(mixed / "samples").statistics["heldout_documents"]
    np.save(tmp_path / "heldout.npy", text_hashes(text_column(shard_paths(mixed / "shards")[0]).slice(0, heldout)))
    task = ShardTask(
        index=0,
        num_shards=2,
        text_shard=shard_paths(mixed / "shards")[0],
        tokenizer=mixed / "tokenizer",
        words=None,
        folder=tmp_path,
        scratch=tmp_path / "scratch",
        config=SampleConfig(seq_len=48),
        seed=3,
        sources=(),
        heldout_texts=tmp_path / "heldout.npy",
        heldout_documents=heldout,
    )
    make_sample_shard(task)
    ours = read_shard(shard_paths(mixed / "samples")[0])
    assert read_shard(tmp_path / task.name).equals(ours.drop_columns(list(SOURCE_COLUMNS)))


def test_a_wrong_source_in_a_row_is_found(mixed):
    batch = read_shard(shard_paths(mixed / "samples")[0]).to_batches()[0]
    assert find_wrong_source(batch, 2) is None
    assert find_wrong_source(batch, 1) is not None


def test_shards_without_the_column_are_refused(mixed, tmp_path):
    with pytest.raises(ArtifactError, match="needs a column 'source' with one of english for each document"):
        source_numbers(shard_paths(mixed / "shards")[0], ["english"])


def test_the_tokenizer_knows_both(mixed):
    tokenizer: Tokenizer = load_tokenizer(mixed / "tokenizer")
    assert {source_of(token) for token in tokenizer.get_vocab()} >= set(SOURCES)


def test_texts_that_weights_repeat_are_not_trained_on_if_they_are_held_out(tmp_path):
    """Every document has a number of its own, so its rows tell where it went."""
    numbers = [f"{number:03d}" for number in range(120)]
    texts = [f"The boat {number} left the harbour. Nobody saw the boat {number} again." for number in numbers]
    file = str(write_jsonl(tmp_path / "texts.jsonl", texts))
    config = ShuffleConfig(shards=2, weights={file: 2.0})
    shuffle_corpus(config, [file], tmp_path / "shards", seed=3, executor=LocalExecutor(1))
    train_tokenizer(TokenizerConfig(vocab_size=200), tmp_path / "shards", tmp_path / "tokenizer")
    statistics = build(tmp_path, "samples").statistics
    tokenizer = load_tokenizer(tmp_path / "samples" / "tokenizer")
    rows = [row["input_ids"] for path in shard_paths(tmp_path / "samples") for row in read_shard(path).to_pylist()]
    seen = [set(tokenizer.decode(row).replace(" ", "").split(".")) for row in rows]
    found = [{number for number in numbers if any(number in part for part in parts)} for parts in seen]
    heldout, trained = (set().union(*some) for some in np.split(found, [statistics["heldout_rows"]]))
    assert heldout
    assert not heldout & trained
    assert len(heldout | trained) == len(numbers)
    assert statistics["left_out_documents"] == 2 * len(heldout) - statistics["heldout_documents"]
