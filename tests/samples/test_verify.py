from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.artifacts import file_checksum, read_manifest
from kexue_train.foundation.errors import ArtifactError
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.tokenizer import train_tokenizer
from kexue_train.samples.verify import verify_sample_shards

CONFIG = SampleConfig(seq_len=64, heldout_fraction=0.1)
CLAIMS = [
    *("seq_len", "vocab_size", "special_token_ids", "heldout_rows", "real_tokens", "document_tokens", "unknown_tokens"),
    *("sequences", "pairs", "negative_pairs", "single_sequences", "words", "word_tokens_squared", "word_lengths"),
    *("fill", "negative_share", "unknown_rate", "tokens_per_document", "tokens_per_word"),
    *("mean_pairs_per_row", "mean_sequences_per_row"),
]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, text_shards: Path, tokenizer_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("samples") / "samples"
    build_samples(CONFIG, text_shards, tokenizer_folder, folder, seed=3, executor=LocalExecutor())
    return folder


@pytest.fixture
def damaged(tmp_path: Path, samples: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(samples, tmp_path / "samples"))


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object] = dict.copy) -> None:
    """Change the manifest, and let it describe the files as they are, so that only what they hold can be wrong."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name, entry in manifest["files"].items():
        entry |= {"bytes": (folder / name).stat().st_size, "checksum": file_checksum(folder / name)}
    manifest["bytes"] = sum(entry["bytes"] for entry in manifest["files"].values())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def rewrite_rows(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    table = read_shard(path)
    rows = table.to_pylist()
    change(rows)
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=table.schema))


def other_than(value: Any) -> Any:
    if isinstance(value, dict):
        name = next(iter(value))
        return value | {name: value[name] + 1}
    return 2 * value + 1 if isinstance(value, int) else value + 0.01


def test_an_undamaged_folder_passes(samples: Path) -> None:
    assert verify_sample_shards(samples) == read_manifest(samples)


def test_the_list_of_claims_is_complete(samples: Path) -> None:
    cannot_be_told_from_rows = {"documents", "heldout_documents", "empty_documents", "single_documents"}
    assert read_manifest(samples).statistics.keys() - cannot_be_told_from_rows == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_every_number_of_the_manifest_is_counted_anew(damaged: Path, name: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["statistics"][name] = other_than(manifest["statistics"][name])

    rewrite_manifest(damaged, change)
    with pytest.raises(ArtifactError):
        verify_sample_shards(damaged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(rows=manifest["rows"] + 1), "manifest.json: rows is"),
        (lambda manifest: manifest.update(kind="text_shards"), "do not fit its digest"),
        (lambda manifest: manifest.update(bytes=manifest["bytes"] + 1), "do not fit"),
        (lambda manifest: manifest["rows_checksum"].update(output="0" * 32), "rows with checksum"),
        (lambda manifest: manifest.update(rows_checksum=None), "rows with checksum"),
        (lambda manifest: manifest["files"]["data-00001-of-00003.arrow"].update(rows=0), "rows of data-00001"),
    ],
)
def test_a_manifest_that_does_not_fit_the_rows_is_found(
    damaged: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite_manifest(damaged, change)
    with pytest.raises(ArtifactError, match=message):
        verify_sample_shards(damaged)


def test_a_folder_of_another_stage_is_refused(text_shards: Path) -> None:
    with pytest.raises(ArtifactError, match="holds text_shards, not sample_shards"):
        verify_sample_shards(text_shards)


def swap(rows: list[dict[str, Any]]) -> None:
    rows[0], rows[-1] = rows[-1], rows[0]


def replace_token(rows: list[dict[str, Any]]) -> None:
    rows[-1]["input_ids"][1] = 7 if rows[-1]["input_ids"][1] != 7 else 8


def move_word_start(rows: list[dict[str, Any]]) -> None:
    rows[-1]["word_starts"][0] ^= 0b1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap, "token_counts.npy: does not hold|word"),  # the first row is held out, the last is not
        (replace_token, "rows with checksum"),
        (move_word_start, "rows with checksum|violates a rule"),
        (lambda rows: rows.append(rows[-1]), "rows of data-00000"),
        (lambda rows: rows.pop(), "rows of data-00000"),
        (lambda rows: rows[-1]["sequence_lengths"].append(1), "row .* violates a rule: its lists differ"),
        (
            lambda rows: rows[5]["input_ids"].__setitem__(0, 9),
            "row 5 violates a rule: .CLS., .SEP. or .PAD. is missing",
        ),
    ],
)
def test_rows_other_than_those_made_are_found(
    damaged: Path, change: Callable[[list[dict[str, Any]]], None], message: str
) -> None:
    rewrite_rows(shard_paths(damaged)[0], change)
    rewrite_manifest(damaged)
    with pytest.raises(ArtifactError, match=message):
        verify_sample_shards(damaged)


def test_counts_of_other_tokens_are_found(damaged: Path) -> None:
    counts = np.load(damaged / "token_counts.npy")
    counts[[8, 9]] += [1, -1]
    np.save(damaged / "token_counts.npy", counts)
    rewrite_manifest(damaged)
    with pytest.raises(ArtifactError, match="does not hold the counts"):
        verify_sample_shards(damaged)


def test_another_tokenizer_is_found(tmp_path: Path, damaged: Path, text_shards: Path) -> None:
    train_tokenizer(TokenizerConfig(vocab_size=200), text_shards, tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(tmp_path / "other" / name, damaged / "tokenizer" / name)
    rewrite_manifest(damaged)
    with pytest.raises(ArtifactError, match="vocab_size is 256, but 200 was counted"):
        verify_sample_shards(damaged)


def test_columns_of_another_form_are_found(damaged: Path) -> None:
    path = shard_paths(damaged)[1]
    table = pa.ipc.open_stream(path.read_bytes()).read_all().drop_columns(["word_starts"])
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    rewrite_manifest(damaged)
    with pytest.raises(ArtifactError, match="has the columns"):
        verify_sample_shards(damaged)


@pytest.mark.parametrize("name", ["data-00001-of-00003.arrow", "token_counts.npy", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_or_a_missing_file_is_found(damaged: Path, name: str) -> None:
    path = damaged / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"{name}: checksum"):
        verify_sample_shards(damaged)
    path.unlink()
    with pytest.raises(ArtifactError, match=f"{name}: is missing"):
        verify_sample_shards(damaged)
