"""Shards: whole or absent, readable by plain pyarrow and by datasets, hashed without copies."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.foundation.arrow_shards import (
    ShardWriter,
    column_bytes,
    format_checksum,
    read_shard,
    shard_name,
    shard_paths,
    sum_hashes,
    text_hashes,
    write_dataset_files,
)
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


@given(st.lists(st.text()), st.sampled_from([pa.string(), pa.large_string(), pa.binary()]), st.data())
def test_column_bytes_are_the_values_of_any_slice(texts: list[str], kind: pa.DataType, data: st.DataObject) -> None:
    values = [text.encode() for text in texts]
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    column = pa.array(values if kind == pa.binary() else texts, kind).slice(start, stop - start)
    assert [bytes(view) for view in column_bytes(column)] == values[start:stop]


@given(st.lists(st.binary(), max_size=8), st.randoms())
def test_the_checksum_of_rows_ignores_their_order_and_nothing_else(rows: list[bytes], random: st.DataObject) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    total = sum_hashes(text_hashes(rows))
    assert total == sum_hashes(text_hashes(shuffled))
    assert total != sum_hashes(text_hashes([*rows, b""]))
    assert total != sum_hashes(text_hashes([*rows, *rows[:1]])) or not rows
    halves = sum_hashes([sum_hashes(text_hashes(rows[:3])), sum_hashes(text_hashes(rows[3:]))])
    assert total == halves


def test_the_hash_is_xxh3_of_128_bits() -> None:
    # XXH3_128bits of the empty input, seed 0: xxhash's own sanity test.
    assert format_checksum(text_hashes([b""])[0]) == "99aa06d3014798d86001c324468d497f"
    assert text_hashes([b"a"]) == [xxhash.xxh3_128_intdigest(b"a")]


def test_a_checksum_has_32_digits_and_wraps() -> None:
    assert format_checksum(1) == "0" * 31 + "1"
    assert format_checksum(2**128 + 1) == format_checksum(1)
