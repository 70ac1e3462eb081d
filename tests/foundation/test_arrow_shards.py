"""Shards: whole or absent, readable by plain pyarrow and by datasets, hashed without copies."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from kexue_train.foundation.arrow_shards import (
    ShardWriter,
    format_checksum,
    read_shard,
    shard_name,
    shard_paths,
    write_dataset_files,
)
from kexue_train.foundation.artifacts import Recipe, build_manifest, describe_files, open_partial, publish
from kexue_train.foundation.errors import ArtifactError

SCHEMA = pa.schema([("text", pa.string())])


def batch(*texts: str) -> pa.RecordBatch:
    return pa.record_batch([pa.array(texts, pa.string())], schema=SCHEMA)


def write(path: Path, *texts: str) -> Path:
    with ShardWriter(path, SCHEMA) as writer:
        writer.write(batch(*texts))
    return path


def test_rows_are_read_back_in_order(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.arrow", SCHEMA) as writer:
        writer.write(batch("a", "维基"))
        writer.write(pa.Table.from_batches([batch("", "b")]))
        assert writer.rows == 4
    assert read_shard(tmp_path / "s.arrow")["text"].to_pylist() == ["a", "维基", "", "b"]
    assert pa.ipc.open_stream((tmp_path / "s.arrow").read_bytes()).read_all().num_rows == 4


def test_a_shard_gets_its_name_only_when_whole(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s.arrow", SCHEMA) as writer:
        writer.write(batch("a"))
        assert not (tmp_path / "s.arrow").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["s.arrow"]


def test_an_error_in_the_body_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid), ShardWriter(tmp_path / "s.arrow", SCHEMA) as writer:
        writer.write(pa.table({"other": [1]}))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "s.arrow", "a")
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_shard_do_not_write_into_one_file(tmp_path: Path) -> None:
    # A dying worker of a killed run may still write while the next run makes the same shard.
    with ShardWriter(tmp_path / "s.arrow", SCHEMA) as dying:
        dying.write(batch("a"))
        write(tmp_path / "s.arrow", "a")
        assert read_shard(tmp_path / "s.arrow")["text"].to_pylist() == ["a"]
        dying.write(batch("b"))
    assert read_shard(tmp_path / "s.arrow")["text"].to_pylist() == ["a", "b"]


def test_a_shard_cut_at_any_byte_is_refused_or_holds_fewer_rows(tmp_path: Path) -> None:
    # An Arrow stream may end without its end mark, so a cut between two batches is seen only by its size.
    whole = write(tmp_path / "s.arrow", "some", "text").read_bytes()
    outcomes = set()
    for size in range(len(whole)):
        (tmp_path / "s.arrow").write_bytes(whole[:size])
        try:
            outcomes.add(read_shard(tmp_path / "s.arrow").num_rows)
        except ArtifactError:
            outcomes.add("refused")
    assert outcomes == {"refused", 0, 2}


@pytest.mark.parametrize("content", [b"", b"no arrow at all", b"\x00" * 100, b"\xff" * 100])
def test_a_file_that_is_no_arrow_stream_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.arrow").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"s\.arrow: cannot be read as an Arrow IPC stream"):
        read_shard(tmp_path / "s.arrow")


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"s\.arrow: cannot be read"):
        read_shard(tmp_path / "s.arrow")
    with pytest.raises(ArtifactError, match=r"holds no data-\*-of-\*\.arrow shard"):
        shard_paths(tmp_path)


def test_shards_are_listed_in_order(tmp_path: Path) -> None:
    names = [shard_name(index, 12) for index in range(12)]
    for name in reversed(names):
        write(tmp_path / name, "a")
    assert [path.name for path in shard_paths(tmp_path)] == names
    assert names[3] == "data-00003-of-00012.arrow"


def test_the_shards_are_those_that_the_manifest_lists(tmp_path: Path) -> None:
    names = [shard_name(index, 2) for index in range(2)]
    recipe = Recipe(kind="text_shards", settings={})
    folder = open_partial(tmp_path / "shards", recipe)
    for name in names:
        write(folder / name, "a")
    publish(folder, tmp_path / "shards", build_manifest(recipe, describe_files(folder)))
    write(tmp_path / "shards" / shard_name(7, 9), "of another shuffle")
    assert [path.name for path in shard_paths(tmp_path / "shards")] == names


@pytest.mark.slow
def test_datasets_opens_the_folder_with_every_type_in_use(tmp_path: Path) -> None:
    import datasets

    schema = pa.schema(
        [
            ("text", pa.large_string()),
            ("input_ids", pa.list_(pa.uint16(), 4)),
            ("lengths", pa.list_(pa.uint16())),
            ("labels", pa.list_(pa.int8())),
        ]
    )
    rows = [{"text": f"t{i}", "input_ids": [i, 1, 2, 65535], "lengths": [i], "labels": [-100]} for i in range(5)]
    names = [shard_name(index, 2) for index in range(2)]
    for name, part in zip(names, (rows[:3], rows[3:]), strict=True):
        with ShardWriter(tmp_path / name, schema) as writer:
            writer.write(pa.Table.from_pylist(part, schema))
    write_dataset_files(tmp_path, datasets.Features.from_arrow_schema(schema).to_dict(), names)
    dataset = datasets.load_from_disk(str(tmp_path))
    assert dataset.to_list() == rows
    assert dataset.data.schema.remove_metadata() == schema


def test_a_checksum_has_32_digits_and_wraps() -> None:
    assert format_checksum(1) == "0" * 31 + "1"
    assert format_checksum(2**128 + 1) == format_checksum(1)
