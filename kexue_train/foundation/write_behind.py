"""A file written from front to back: hashed on the way, and written to disk behind the writer instead of all at once.

Left alone, Linux collects written pages until a share of the memory is dirty and then makes the writer wait for the
disk. Asking for every few MB to be written out at once keeps disk and processor busy together (measured: 121 -> 160 to
205 MB/s for a shuffle on one disk).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import xxhash

from kexue_train.foundation.artifacts import aside_name
from kexue_train.foundation.operating_system import write_out

_WINDOW_BYTES = 8 * 2**20
_MAX_PARTS = 512
"""Buffers of one call of the system; all allow 1,024 or more."""


class WriteBehindFile:
    """A new file under ``path``; a writable file object as far as pyarrow and the standard library ask for one.

    Attributes:
        bytes: Bytes written so far.
        closed: Whether it was closed.
    """

    def __init__(self, path: Path, *, is_written_behind: bool = True, is_hashed: bool = True) -> None:
        """Open ``path``.

        Args:
            path: A new file.
            is_written_behind: Whether it is to go to disk, or may stay in the page cache as long as it can.
            is_hashed: Whether somebody will ask for ``checksum``.
        """
        self.bytes = 0
        self._is_written_behind = is_written_behind
        self._file = path.open("wb", buffering=0)
        self._hash = xxhash.xxh3_128() if is_hashed else None
        self._flushed = 0

    @property
    def checksum(self) -> str:
        """``xxh3_128:`` and the hash of all bytes written, as ``artifacts.file_checksum`` gives it."""
        if self._hash is None:
            raise ValueError(f"{self._file.name}: was opened without a checksum")
        return f"xxh3_128:{self._hash.hexdigest()}"

    @property
    def closed(self) -> bool:
        """Whether the file was closed."""
        return self._file.closed

    def write(self, data: Any) -> int:
        """Append bytes, a memoryview or an Arrow buffer; returns how many bytes."""
        view = memoryview(data)
        self.write_parts([view])
        return view.nbytes

    def write_parts(self, parts: Sequence[memoryview]) -> None:
        """Append buffers one after the other; nothing is copied."""
        for start in range(0, len(parts), _MAX_PARTS):
            self._write([part.cast("B") for part in parts[start : start + _MAX_PARTS] if part.nbytes])

    def _write(self, parts: list[memoryview]) -> None:
        for part in parts:
            if self._hash is not None:
                self._hash.update(part)
            self.bytes += part.nbytes
        while parts:
            written = os.writev(self._file.fileno(), parts)
            while parts and written >= parts[0].nbytes:
                written -= parts.pop(0).nbytes
            if parts:  # a write may be short
                parts[0] = parts[0][written:]
        if self._is_written_behind and self.bytes - self._flushed >= _WINDOW_BYTES:
            write_out(self._file.fileno(), self._flushed, self.bytes)
            self._flushed = self.bytes

    def tell(self) -> int:
        """Return the number of bytes written so far."""
        return self.bytes

    def flush(self) -> None:
        """Do nothing: no data is held back."""

    def sync(self) -> None:
        """Return once everything is on disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; twice is as once."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def new_file(path: Path, *, durable: bool = True) -> Iterator[WriteBehindFile]:
    """Open a file that gets the name ``path`` when it is whole (if ``durable``, on disk); an error deletes it."""
    aside = aside_name(path)
    try:
        with WriteBehindFile(aside) as file:
            yield file
            if durable:
                file.sync()
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
