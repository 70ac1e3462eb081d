"""Opens plain and compressed files; what breaks while unpacking becomes an error that names the file and the byte."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa

from kexue_train.errors import CorpusError
from kexue_train.runtime import format_size

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz", ".lz4": "lz4"}
"""File name suffix -> name of the compression."""


class ByteStream(Protocol):
    """The part of a binary file that the readers need."""

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; none at the end."""
        ...


class _Unpacking:
    """Reads through a decompressor and keeps count."""

    def __init__(self, path: Path, raw: IO[bytes], compression: str) -> None:
        self._path, self._raw, self._compression = path, raw, compression
        self._unpacked = 0
        self._stream: Any = _decompressor(raw, compression)

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise CorpusError(
                f"{self._path}: the {self._compression} data is cut off or damaged near byte {self._raw.tell()}, "
                f"after {format_size(self._unpacked)} unpacked ({error}); fetch or make the file again, or leave it out"
            ) from None
        self._unpacked += len(data)
        return data


@contextmanager
def open_stream(path: Path, compression: str | None = None, *, offset: int = 0) -> Iterator[ByteStream]:
    """Open ``path`` for reading; ``offset`` (plain files only) is the byte to start at.

    Raises:
        CorpusError: On opening or reading, if the file cannot be read or its compressed data is damaged.
    """
    try:
        with path.open("rb", buffering=0 if compression is None else 1 << 20) as raw:
            if compression is None:
                raw.seek(offset)
                yield raw
            else:
                yield _Unpacking(path, raw, compression)
    except OSError as error:
        if error.filename is not None or error.errno in (5, 21):  # EIO, EISDIR
            raise unreadable(path, error) from None
        raise


def unreadable(path: Path, error: OSError) -> CorpusError:
    """The error for an input that the system does not let us read."""
    return CorpusError(
        f"{path}: cannot be read ({error.strerror}); check the path and its permissions, or leave the file out"
    )


def _decompressor(raw: IO[bytes], compression: str) -> Any:
    match compression:
        case "gzip":
            return gzip.GzipFile(fileobj=raw, mode="rb")
        case "bz2":
            return bz2.BZ2File(raw)
        case "xz":
            return lzma.LZMAFile(raw)
        case _:
            return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)
