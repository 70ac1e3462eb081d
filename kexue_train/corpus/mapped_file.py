"""A file whose parts are read in any order: mapped where the system can, so that what was read takes no memory."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import pyarrow as pa

from kexue_train.corpus.streams import open_seekable
from kexue_train.foundation.errors import CorpusError

ReadAt = Callable[[int, int], bytes]
"""Gives so many bytes (the second number) of a file from an offset (the first) on, fewer before its end."""


class MappedFile:
    """A file, open for Arrow; made by ``open_mapped``."""

    def __init__(self, path: str, raw: IO[bytes]) -> None:
        self._path, self._raw = path, raw
        self._map = _map(raw)

    @property
    def is_mapped(self) -> bool:
        """Whether Arrow reads it without a copy in memory."""
        return self._map is not None

    def for_arrow(self) -> Any:
        """Return it as Arrow reads it."""
        return self._raw if self._map is None else pa.BufferReader(pa.py_buffer(self._map))

    def read_at(self, offset: int, size: int) -> bytes:
        """Read some bytes from anywhere; a ``ReadAt``. Not from the mapping, which brings in far more around them."""
        self._raw.seek(offset)
        parts = []
        while size and (part := self._raw.read(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def release(self) -> None:
        """Give back the pages of the file that were read. They stay in the page cache; if needed, they come again.

        Raises:
            CorpusError: If the file has become shorter: what lies beyond its end cannot be read from a mapping.
        """
        if self._map is None:
            return
        if os.fstat(self._raw.fileno()).st_size < len(self._map):
            raise CorpusError(
                f"{self._path}: was changed while it was read; let it be finished, then run the same command again"
            )
        self._map.madvise(mmap.MADV_DONTNEED)


@contextmanager
def open_mapped(path: str, compression: str | None = None) -> Iterator[MappedFile]:
    """Open an input for reading anywhere in it; see ``open_seekable``."""
    with open_seekable(path, compression) as raw:
        yield MappedFile(path, raw)


def _map(raw: IO[bytes]) -> mmap.mmap | None:
    """Return a mapping of the file; None for an empty one, and for one that no file of this machine stands behind."""
    try:
        return mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)
    except (AttributeError, io.UnsupportedOperation, ValueError, OSError):
        return None
