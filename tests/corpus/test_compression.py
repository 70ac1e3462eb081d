from __future__ import annotations

import bz2
import gzip
import io
import lzma

import pytest

from kexue_train.corpus import formats
from kexue_train.corpus.compression import _PACKERS, open_compressor
from kexue_train.corpus.streams import open_stream

COMPRESSIONS = {name: entry for name, entry in formats.COMPRESSIONS.items() if entry.is_appendable}
PIECES = [b"one\n" * 30_000, b"", b"two\n", "三\n".encode()]
UNPACKERS = {"gzip": gzip.decompress, "bz2": bz2.decompress, "xz": lzma.decompress}


def compress(pieces, compression):
    file = io.BytesIO()
    with open_compressor(file, compression) as sink:
        for piece in pieces:
            sink.write(piece)
    assert not file.closed
    return file.getvalue()


def test_every_compression_of_the_table_can_be_written():
    assert tuple(_PACKERS) == tuple(COMPRESSIONS)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_members_one_after_the_other_are_read_back(tmp_path, compression):
    packed = [compress(PIECES, compression), compress([], compression), compress(PIECES[2:], compression)]
    assert all(data.startswith(COMPRESSIONS[compression].magics) for data in packed)
    (tmp_path / "file").write_bytes(b"".join(packed))
    with open_stream(str(tmp_path / "file"), compression) as stream:
        assert stream.read(10**6) == b"".join([*PIECES, *PIECES[2:]])


@pytest.mark.parametrize("compression", UNPACKERS)
def test_the_standard_library_unpacks_it(compression):
    assert UNPACKERS[compression](compress(PIECES, compression)) == b"".join(PIECES)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_equal_contents_give_equal_bytes(compression, monkeypatch):
    first = compress(PIECES, compression)
    monkeypatch.setattr("time.time", lambda: 10.0**9)
    assert compress(PIECES, compression) == first


def test_without_a_compression_nothing_is_in_between():
    file = io.BytesIO()
    with open_compressor(file, None) as sink:
        assert sink is file
