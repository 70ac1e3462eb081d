from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.artifacts import Manifest, read_manifest
from kexue_train.foundation.errors import ArtifactError, StaleArtifactError
from kexue_train.samples import build_samples as build_samples_module
from kexue_train.samples import mix_rows
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.encode import Encoder
from kexue_train.samples.missing_pairs import note_documents_without_pairs
from kexue_train.samples.tokenizer import load_tokenizer, train_tokenizer
from kexue_train.samples.verify import verify_sample_shards

CONFIG = SampleConfig(seq_len=64, heldout_fraction=0.1)
GLOBAL = SampleConfig(seq_len=64, heldout_fraction=0.1, shuffle="global")


class Killed(BaseException):
    """Stands for a kill: no handler of the library catches it."""


class CountingExecutor:
    """Runs tasks here, counts them, and dies before task ``die_at``."""

    num_workers = 1

    def __init__(self, die_at: int | None = None) -> None:
        self.ran = 0
        self.die_at = die_at

    def map_unordered(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index, item in enumerate(items):
            if self.ran == self.die_at:
                raise Killed
            self.ran += 1
            yield index, function(item)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, text_shards: Path, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "samples"
    build_samples(CONFIG, text_shards, tokenizer_folder, folder, seed=3, executor=LocalExecutor())
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def all_rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in shard_paths(folder) for row in read_shard(path).to_pylist()]


def own_tokens(rows: list[dict[str, Any]]) -> list[int]:
    """The tokens of A and of true Bs, sorted; each document's token should be there once."""
    tokens = []
    for row in rows:
        start = 0
        for length, a, label in zip(
            row["sequence_lengths"], row["segment_a_lengths"], row["next_sentence_labels"], strict=True
        ):
            tokens += row["input_ids"][start + 1 : start + a - 1]
            if label == 0:
                tokens += row["input_ids"][start + a : start + length - 1]
            start += length
    return sorted(tokens)


def tokens_of(texts: list[str], tokenizer: Path) -> list[int]:
    return sorted(Encoder(load_tokenizer(tokenizer), whole_word=True).encode(texts).token_ids.tolist())


def test_no_token_is_lost_and_none_held_out_is_trained_on(
    samples: Path, text_shards: Path, tokenizer_folder: Path
) -> None:
    facts = read_manifest(samples).statistics
    texts = [text for path in shard_paths(text_shards) for text in read_shard(path).column("text").to_pylist()]
    rows, kept = all_rows(samples), facts["heldout_documents"]
    assert kept == 8
    assert own_tokens(rows[: facts["heldout_rows"]]) == tokens_of(texts[:kept], tokenizer_folder)
    assert own_tokens(rows[facts["heldout_rows"] :]) == tokens_of(texts[kept:], tokenizer_folder)


def test_held_out_rows_hold_nothing_but_held_out_documents(
    tmp_path: Path, write_text_shards: Callable, tokenizer_folder: Path
) -> None:
    texts = ["公园 " * 30 if i < 8 else "boats " * 30 for i in range(40)]
    shards = write_text_shards(tmp_path / "shards", texts)
    manifest = build_samples(CONFIG, shards, tokenizer_folder, tmp_path / "samples", seed=0, executor=LocalExecutor())
    gong = load_tokenizer(tokenizer_folder).token_to_id("公")
    held_out = [gong in row["input_ids"] for row in all_rows(tmp_path / "samples")]
    num_heldout = manifest.statistics["heldout_rows"]
    assert held_out == [i < num_heldout for i in range(manifest.rows)]


def test_the_result_passes_its_own_verification(samples: Path) -> None:
    assert verify_sample_shards(samples) == read_manifest(samples)
    assert files_of(samples).keys() == {*read_manifest(samples).files, "manifest.json"}


def test_the_tokenizer_travels_with_the_samples(samples: Path, tokenizer_folder: Path) -> None:
    expected = {name: data for name, data in files_of(tokenizer_folder).items() if name != "manifest.json"}
    assert files_of(samples / "tokenizer") == expected


def test_statistics_are_true(samples: Path) -> None:
    manifest, rows = read_manifest(samples), all_rows(samples)
    facts = manifest.statistics
    labels = np.concatenate([row["next_sentence_labels"] for row in rows])
    assert (manifest.rows, facts["sequences"]) == (len(rows), len(labels))
    assert (facts["pairs"], facts["negative_pairs"]) == ((labels >= 0).sum(), (labels == 1).sum())
    real = sum(sum(row["sequence_lengths"]) for row in rows)
    assert facts["real_tokens"] == real
    assert facts["fill"] == pytest.approx(real / (64 * len(rows)), abs=1e-6)
    training = np.concatenate([row["input_ids"] for row in rows[facts["heldout_rows"] :]])
    np.testing.assert_array_equal(np.load(samples / "token_counts.npy"), np.bincount(training, minlength=256))
    assert manifest.rows_checksum is not None


def test_the_seed_changes_the_samples(tmp_path: Path, samples: Path, text_shards: Path, tokenizer_folder: Path) -> None:
    build_samples(CONFIG, text_shards, tokenizer_folder, tmp_path / "other", seed=4, executor=LocalExecutor())
    assert read_manifest(tmp_path / "other").rows_checksum != read_manifest(samples).rows_checksum


class Notes:
    """Keeps what a stage says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def update(self, *_: Any, **__: Any) -> None:
        pass

    def note(self, message: str) -> None:
        self.notes.append(message)


LINES = ["The boats came at noon.", "Nobody expected the storm.", "They count words."] * 20


@pytest.mark.parametrize(
    ("documents", "config", "warning"),
    [
        (LINES, CONFIG, "none of the 60 sequences is a pair: .* --document block .* --no-nsp"),
        (["Boats came. It went."] * 2 + LINES * 4, CONFIG, "[12] of the 24. sequences are pairs: .* block"),
        (LINES, CONFIG.model_copy(update={"nsp": False}), None),
        ([f"{a} {b}" for a, b in pairwise(LINES)], CONFIG, None),
        ([f"{LINES[0]} {LINES[1]}"] * 110, CONFIG, "0 of the 110 pairs have a random B, .* --dedup exact"),
    ],
    ids=["no pairs", "hardly any", "nsp off", "pairs", "copies"],
)
def test_missing_pairs_are_said(
    tmp_path: Path,
    write_text_shards: Callable,
    tokenizer_folder: Path,
    documents: list[str],
    config: SampleConfig,
    warning: str | None,
) -> None:
    shards, said, early = write_text_shards(tmp_path / "shards", documents), Notes(), Notes()
    build_samples(
        config, shards, tokenizer_folder, tmp_path / "samples", seed=0, executor=LocalExecutor(), progress=said
    )
    note_documents_without_pairs(shards, early)
    assert [bool(re.search(f"warning: .*{warning}", note)) for note in said.notes] == [True] * bool(warning)
    assert bool(early.notes) == (documents == LINES)


def test_work_of_another_method_is_not_continued(
    tmp_path: Path, samples: Path, text_shards: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(executor: CountingExecutor, progress: Notes) -> Manifest:
        return build_samples(
            CONFIG, text_shards, tokenizer_folder, tmp_path / "samples", seed=3, executor=executor, progress=progress
        )

    with monkeypatch.context() as older:
        older.setattr(build_samples_module, "_METHOD", "")
        with pytest.raises(Killed):
            run(CountingExecutor(die_at=2), Notes())
    said, executor = Notes(), CountingExecutor()
    run(executor, said)
    assert (executor.ran, said.notes[:1]) == (3, ["starting over: the interrupted run was of another version"])
    assert files_of(tmp_path / "samples") == files_of(samples)


def test_what_an_older_method_finished_is_kept(
    samples: Path, text_shards: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_samples_module, "_METHOD", "another")
    executor, before = CountingExecutor(), files_of(samples)
    build_samples(CONFIG, text_shards, tokenizer_folder, samples, seed=3, executor=executor)
    assert (executor.ran, files_of(samples)) == (0, before)


def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, samples: Path, text_shards: Path, tokenizer_folder: Path
) -> None:
    def run(executor: CountingExecutor) -> Manifest:
        return build_samples(CONFIG, text_shards, tokenizer_folder, tmp_path / "samples", seed=3, executor=executor)

    with pytest.raises(Killed):
        run(CountingExecutor(die_at=2))
    assert not (tmp_path / "samples").exists()
    executor = CountingExecutor()
    run(executor)
    assert executor.ran == 1
    assert files_of(tmp_path / "samples") == files_of(samples)
    run(executor := CountingExecutor())
    assert executor.ran == 0


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, text_shards: Path, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("mixed") / "samples"
    build_samples(GLOBAL, text_shards, tokenizer_folder, folder, seed=3, executor=LocalExecutor())
    return folder


def test_rows_of_all_shards_are_mixed_and_held_out_rows_stay_first(samples: Path, mixed: Path) -> None:
    assert verify_sample_shards(mixed).rows_checksum == read_manifest(samples).rows_checksum
    assert read_manifest(mixed).statistics == read_manifest(samples).statistics
    heldout = read_manifest(samples).statistics["heldout_rows"]
    assert all_rows(mixed)[:heldout] == all_rows(samples)[:heldout]
    before, after = (
        [[row["input_ids"] for row in read_shard(path).to_pylist()] for path in shard_paths(folder)]
        for folder in (samples, mixed)
    )
    for shard in after[1:]:
        assert {min(i for i, rows in enumerate(before) if row in rows) for row in shard} == {0, 1, 2}


@pytest.mark.parametrize("die_at", [1, 3, 5])
def test_a_killed_run_that_mixes_goes_on_where_it_was(
    tmp_path: Path, mixed: Path, text_shards: Path, tokenizer_folder: Path, die_at: int
) -> None:
    def run(executor: CountingExecutor) -> Manifest:
        return build_samples(GLOBAL, text_shards, tokenizer_folder, tmp_path / "samples", seed=3, executor=executor)

    with pytest.raises(Killed):
        run(CountingExecutor(die_at=die_at))
    run(executor := CountingExecutor())
    assert executor.ran == 6 - die_at
    assert files_of(tmp_path / "samples") == files_of(mixed)


def test_mixed_rows_that_are_not_those_made_are_refused(
    tmp_path: Path, text_shards: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mix_rows, "iter_ordered", lambda *_, **__: iter(()))
    with pytest.raises(ArtifactError, match="mixed rows have the checksum"):
        build_samples(GLOBAL, text_shards, tokenizer_folder, tmp_path / "s", seed=3, executor=LocalExecutor())
    assert not (tmp_path / "s").exists()


def test_another_setting_is_refused_or_made_anew(
    tmp_path: Path, samples: Path, text_shards: Path, tokenizer_folder: Path
) -> None:
    folder = Path(shutil.copytree(samples, tmp_path / "samples"))
    config = CONFIG.model_copy(update={"nsp": False})
    arguments = {"seed": 3, "executor": LocalExecutor()}
    with pytest.raises(StaleArtifactError, match="nsp changed from True to False"):
        build_samples(config, text_shards, tokenizer_folder, folder, **arguments)
    manifest = build_samples(config, text_shards, tokenizer_folder, folder, replace=True, **arguments)
    assert manifest.statistics["pairs"] == 0
    verify_sample_shards(folder)


def test_documents_other_than_the_manifest_says_are_refused(
    tmp_path: Path, text_shards: Path, write_text_shards: Callable, tokenizer_folder: Path
) -> None:
    shards = Path(shutil.copytree(text_shards, tmp_path / "shards"))
    other = write_text_shards(tmp_path / "other", ["boats here", "boats there"])
    shutil.copy(shard_paths(other)[0], shard_paths(shards)[2])
    with pytest.raises(ArtifactError, match="were changed or damaged"):
        build_samples(CONFIG, shards, tokenizer_folder, tmp_path / "s", seed=0, executor=LocalExecutor())


def test_a_shard_without_text_is_refused(tmp_path: Path, text_shards: Path, tokenizer_folder: Path) -> None:
    shards = Path(shutil.copytree(text_shards, tmp_path / "shards"))
    path = shard_paths(shards)[1]
    table = pa.table({"body": ["boats"]})
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write(table)
    with pytest.raises(ArtifactError, match=r"needs a column 'text'"):
        build_samples(CONFIG, shards, tokenizer_folder, tmp_path / "s", seed=0, executor=LocalExecutor())


@pytest.mark.slow
@pytest.mark.parametrize("config", [CONFIG, GLOBAL], ids=lambda config: config.shuffle)
def test_two_workers_write_the_same_bytes(
    tmp_path: Path, samples: Path, mixed: Path, text_shards: Path, tokenizer_folder: Path, config: SampleConfig
) -> None:
    build_samples(config, text_shards, tokenizer_folder, tmp_path / "two", seed=3, executor=LocalExecutor(2))
    assert files_of(tmp_path / "two") == files_of(samples if config == CONFIG else mixed)


@pytest.mark.slow
def test_datasets_opens_the_folder(samples: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_from_disk(str(samples))
    assert found.to_list() == all_rows(samples)


@pytest.mark.slow
@pytest.mark.parametrize("seq_len", [128, 512])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_rows_of_real_text_are_full(
    tmp_path: Path, shared_data: Path, write_text_shards: Callable, language: str, seq_len: int
) -> None:
    texts = _corpus_slice(shared_data / "corpus" / language / f"{language}wiki-000.jsonl.gz", 3_000_000)
    shards = write_text_shards(tmp_path / "shards", texts, 2)
    train_tokenizer(TokenizerConfig(vocab_size=4096), shards, tmp_path / "tokenizer")
    manifest = build_samples(
        SampleConfig(seq_len=seq_len),
        shards,
        tmp_path / "tokenizer",
        tmp_path / "s",
        seed=0,
        executor=LocalExecutor(),
    )
    facts = manifest.statistics
    assert facts["fill"] >= 0.98
    assert facts["unknown_rate"] < 0.01
    assert facts["negative_pairs"] / facts["pairs"] == pytest.approx(0.5, abs=0.04)
    verify_sample_shards(tmp_path / "s")


def _corpus_slice(path: Path, num_bytes: int) -> list[str]:
    import gzip
    import json

    texts: list[str] = []
    with gzip.open(path) as file:
        while sum(map(len, texts)) < num_bytes // 2:
            texts.append(json.loads(next(file))["text"])
    return texts
