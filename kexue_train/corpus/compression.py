"""Compresses what is written; ``streams.py`` reads it back, and so do gzip, zstd, bzip2, xz and lz4."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pyarrow as pa

_GZIP_LEVEL = 6  # of the program gzip; Python's default is 9
_XZ_PRESET = 1  # 9 MB of memory; the default takes 94 MB, more than a worker may have


class Sink(Protocol):
    """The part of a binary file that the writers need."""

    def write(self, data: Any, /) -> Any:
        """Append bytes."""
        ...


@contextmanager
def open_compressor(sink: Sink, compression: str | None) -> Iterator[Sink]:
    """Open a file object that writes what it is given to ``sink``, compressed as one member or frame.

    Equal contents give equal bytes. ``sink`` is left open; with ``compression`` None it is what is yielded.
    """
    if compression is None:
        yield sink
        return
    with _PACKERS[compression](_Kept(sink)) as packer:
        yield packer


class _Kept:
    """A file that is not closed by what writes to it."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self.write = sink.write

    def flush(self) -> None:
        """Do nothing: no data is held back."""

    def close(self) -> None:
        """Leave the closing to whoever opened the file."""


_PACKERS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda file: gzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0),  # without a time, for equal bytes
    "zstd": lambda file: pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), "zstd"),
    "bz2": lambda file: bz2.BZ2File(file, "wb"),
    "xz": lambda file: lzma.LZMAFile(file, "wb", preset=_XZ_PRESET),  # noqa: SIM115  # opened in a with
    "lz4": lambda file: pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), "lz4"),
}
"""Name of a compression -> opens a file that compresses into another; the same names as ``formats.COMPRESSIONS``."""
