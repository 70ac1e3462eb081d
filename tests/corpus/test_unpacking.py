from __future__ import annotations

import gzip
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus import streams
from kexue_train.corpus.records import MAX_RECORD_BYTES
from kexue_train.corpus.streams import Unpacked, open_seekable
from kexue_train.foundation.errors import CorpusError
from tests.corpus.written_formats import PACKERS, WRITERS

NAMES = {"gz": "gzip", "bz2": "bz2", "xz": "xz", "lzma": "lzma", "zst": "zstd", "lz4": "lz4"}


class Pipe:
    """Gives less than it is asked for, as a pipe or a socket does."""

    def __init__(self, data):
        self._raw = io.BytesIO(data)

    def read(self, size):
        return self._raw.read(min(size, 7))


@pytest.mark.parametrize("suffix", PACKERS)
@given(parts=st.lists(st.binary(max_size=40), min_size=1, max_size=5), size=st.integers(1, 50))
def test_members_come_back_one_after_the_other_from_any_source(suffix, parts, size):
    stream = Unpacked("a", Pipe(b"".join(map(PACKERS[suffix], parts))), NAMES[suffix])
    assert b"".join(iter(lambda: stream.read(size), b"")) == b"".join(parts)


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_long_member_comes_back_whole_in_the_sizes_asked_for(suffix):
    data = bytes(range(256)) * 3000
    stream = Unpacked("a", io.BytesIO(PACKERS[suffix](data)), NAMES[suffix])
    assert [len(piece) for piece in iter(lambda: stream.read(500_000), b"")] == [500_000, 268_000]


@pytest.mark.parametrize("suffix", PACKERS)
def test_garbage_behind_the_data_is_damage_that_comes_after_it(suffix):
    stream = Unpacked("a", io.BytesIO(PACKERS[suffix](b"line\n" * 20_000) + b"garbage!!"), NAMES[suffix])
    assert len(stream.read(1 << 20)) > 90_000
    for _ in range(2):
        with pytest.raises(CorpusError, match="is cut off or damaged near byte"):
            stream.read(10)


@pytest.mark.parametrize("zeros", [1, 512, 100_000])
def test_zeros_behind_a_gzip_are_padding(zeros):
    data = gzip.compress(b"a\n") + bytes(zeros)
    stream = Unpacked("a", io.BytesIO(data + gzip.compress(b"b\n") + bytes(zeros)), "gzip")
    assert stream.read(100) == b"a\nb\n"
    assert stream.read(100) == b""


def test_what_is_unpacked_to_disk_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "MAX_UNPACKED_BYTES", 1000)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(WRITERS["a.parquet"]([{"text": "a", "source": "b"}] * 99)))
    with (
        pytest.raises(CorpusError, match=r"a\.parquet\.gz: unpacks to more than 1 kB"),
        open_seekable(str(tmp_path / "a.parquet.gz"), "gzip"),
    ):
        pass


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.txt"])
def test_a_line_that_never_ends_is_rejected_in_bounded_memory(tmp_path, read, name):
    head = {"a.csv": b'text\nx\n"', "a.json": b'[{"text":"x"},"', "a.txt": b"x\n"}[name]
    tail = {"a.csv": b"", "a.json": b'"]', "a.txt": b""}[name]
    with gzip.open(tmp_path / f"{name}.gz", "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(MAX_RECORD_BYTES // 2**20 + 1):
            file.write(b" " * 2**20)
        file.write(tail)
    result = read(tmp_path / f"{name}.gz")
    assert (result.texts, result.rejected) == (["x"], {"record longer than 64 MiB": 1})
