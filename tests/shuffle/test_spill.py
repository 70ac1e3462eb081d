from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.foundation.errors import ArtifactError
from kexue_train.shuffle import spill
from kexue_train.shuffle.rows import RowBuffer, Rows
from kexue_train.shuffle.spill import SpillReader, SpillWriter, iter_raw

ROW = st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=40), st.binary(max_size=5), st.integers(0, 3))


def make_rows(table, *, extras=False, tickets=False) -> Rows:
    keys, texts, more, numbers = zip(*table, strict=True)
    return Rows(
        np.array(keys, np.uint64),
        pa.array(texts, pa.large_binary()),
        pa.array(more, pa.large_binary()) if extras else None,
        np.array(numbers, np.uint16) if tickets else None,
    )


def as_table(rows: Rows):
    columns = [rows.keys.tolist(), rows.texts.to_pylist()]
    columns += [] if rows.extras is None else [rows.extras.to_pylist()]
    columns += [] if rows.tickets is None else [rows.tickets.tolist()]
    return list(zip(*columns, strict=True))


@settings(max_examples=60)
@given(
    blocks=st.lists(st.lists(ROW, min_size=1, max_size=12), max_size=6),
    num_buckets=st.integers(1, 5),
    buffer_bytes=st.sampled_from([1, 200, 10**6]),
    frame_bytes=st.sampled_from([1, 50, 10**6]),
    kinds=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_bucket_holds_its_rows_in_the_order_they_were_added(
    tmp_path_factory, blocks, num_buckets, buffer_bytes, frame_bytes, kinds
):
    path = tmp_path_factory.mktemp("spill") / "a.spill"
    expected = [[] for _ in range(num_buckets)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "_FRAME_BYTES", frame_bytes)
        writer = SpillWriter(path, num_buckets, buffer_bytes, fits_memory=kinds[2])
        for block in blocks:
            rows = make_rows(block, extras=kinds[0], tickets=kinds[1])
            buckets = [len(text) % num_buckets for _, text, _, _ in block]
            writer.add(rows, np.array(buckets))
            for row, bucket in zip(as_table(rows), buckets, strict=True):
                expected[bucket].append(row)
        index = writer.finish()
    with SpillReader(path, index) as reader:
        for bucket, rows in enumerate(expected):
            assert [row for part in reader.frames(bucket) for row in as_table(part)] == rows
            table = reader.table(bucket, bucket + 1)
            assert [row for part in iter_raw(reader.raw(bucket, table), path) for row in as_table(part)] == rows
            num_bytes = sum(len(row[1]) + (len(row[2]) if kinds[0] else 0) for row in rows)
            assert table.sizes(bucket) == (len(rows), num_bytes)
            if rows:
                buffer = RowBuffer(len(rows), num_bytes)
                reader.load(bucket, table, buffer, origin=7)
                loaded = buffer.build()
                assert as_table(loaded) == rows
                assert loaded.origins is not None
                assert loaded.origins.tolist() == [7] * len(rows)


@pytest.fixture(params=[False, True], ids=["compressed", "plain"])
def spilled(request, tmp_path):
    """A file of two buckets of 1,000 texts each."""
    path = tmp_path / "a.spill"
    writer = SpillWriter(path, 2, 10**9, fits_memory=request.param)
    rows = make_rows([(i, b"text %d " % i * 5, b"", 0) for i in range(2000)])
    writer.add(rows, np.arange(2000) % 2)
    return path, writer.finish()


def test_a_changed_byte_is_noticed(spilled):
    path, index = spilled
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with SpillReader(path, index) as reader, pytest.raises(ArtifactError, match=r"a\.spill: .* is damaged"):
        list(reader.frames(0))
    with SpillReader(path, index) as reader, pytest.raises(ArtifactError, match=r"a\.spill: .* is damaged"):
        reader.load(0, reader.table(0, 1), RowBuffer(1000, 10**6), 0)


@pytest.mark.parametrize("room", [(999, 10**6), (1000, 10)])
def test_more_rows_than_there_should_be_are_noticed(room, spilled):
    path, index = spilled
    with SpillReader(path, index) as reader, pytest.raises(ArtifactError, match="damaged"):
        reader.load(0, reader.table(0, 1), RowBuffer(*room), 0)


def test_frames_that_are_cut_off_are_noticed(tmp_path):
    path = tmp_path / "a.spill"
    writer = SpillWriter(path, 1, 10**9, fits_memory=True)
    writer.add(make_rows([(1, b"text", b"", 0)]), np.zeros(1, np.int64))
    with SpillReader(path, writer.finish()) as reader:
        table = reader.table(0, 1)
        path.write_bytes(path.read_bytes()[: int(table.offsets[0][1]) - 1])
        with pytest.raises(ArtifactError, match="cut off"):
            reader.load(0, table, RowBuffer(1, 4), 0)


def test_a_file_that_is_cut_off_is_noticed(spilled):
    path, index = spilled
    path.write_bytes(path.read_bytes()[: index.offset - 1])
    with SpillReader(path, index) as reader, pytest.raises(ArtifactError, match="cut off"):
        reader.table(0, 1)


def test_a_consumed_bucket_gives_its_disk_space_back_and_the_other_stays(tmp_path):
    path = tmp_path / "large.spill"
    writer = SpillWriter(path, 2, 10**9, fits_memory=False)
    noise = np.random.default_rng(0).bytes(1 << 20)
    writer.add(make_rows([(i, noise, b"", 0) for i in range(8)]), np.arange(8) % 2)
    index = writer.finish()
    before = path.stat().st_blocks
    with SpillReader(path, index) as reader:
        reader.free(0, 1)
        assert sum(len(part) for part in reader.frames(1)) == 4
    assert path.stat().st_blocks < 0.6 * before
