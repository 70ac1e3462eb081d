"""Reads zip archives; their directory is at the end, so members can be read on their own, by several tasks."""

from __future__ import annotations

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

from kexue_train.corpus.archives import Member, read_members
from kexue_train.corpus.builder import Refusal
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.corpus.streams import ByteStream, open_seekable
from kexue_train.foundation.errors import CorpusError, DamagedInputError, MemoryLimitError
from kexue_train.foundation.runtime import format_size

_STEP_BYTES = 1 << 16
"""Fixed, so that what is lost to damage does not depend on who reads in which steps."""
_ENTRY_RATE = 12
"""Bytes in memory for a byte of the directory; measured 5 (long names) to 11."""
_END, _END_64, _END_BYTES = b"PK\x05\x06", b"PK\x06\x06", 22 + 20 + 56 + 2**16
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED = 0x1
_MAX_TARGET_BYTES = 4096
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, struct.error, NotImplementedError)


def read_zip(
    path: str, compression: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of the members ``[start, end)``, see ``archives.read_members``.

    Raises:
        DamagedInputError: If the directory at the end is missing or damaged: then nothing is read.
        MemoryLimitError: If the directory does not fit in memory.
        CorpusError: If members lie over each other, as in archives that unpack without end.
    """
    with open_seekable(path, compression) as file:
        archive = _open(path, file, options.memory_bytes)
        yield from read_members(path, _iter_members(archive, start, end), options)


def count_members(path: str) -> int:
    """Return how many members there are, folders included.

    Raises:
        CorpusError: If the archive cannot be read.
    """
    with open_seekable(path) as file:
        return len(_open(path, file, ReadOptions().memory_bytes).infolist())


def _open(path: str, file: IO[bytes], memory_bytes: int) -> zipfile.ZipFile:
    num_bytes = file.seek(0, 2)
    file.seek(max(num_bytes - _END_BYTES, 0))
    need_bytes = _ENTRY_RATE * _directory_bytes(file.read(_END_BYTES))
    if need_bytes > memory_bytes:
        raise MemoryLimitError(
            f"{path}: its directory of members takes {format_size(need_bytes)} of memory, and "
            f"{format_size(memory_bytes)} are there for it; make several archives of it, or a tar",
            need_bytes,
        )
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError) as error:
        raise DamagedInputError(
            f"{path}: the directory at the end of the zip archive is cut off or damaged ({error}); fetch or make the "
            "file again, or leave it out"
        ) from None
    if sum(entry.compress_size for entry in archive.infolist()) > num_bytes:
        raise CorpusError(
            f"{path}: its members lie over each other, so it would unpack to far more than it holds; make it again"
        )
    return archive


def _directory_bytes(tail: bytes) -> int:
    """Return how long the directory says it is, 0 if it is not found; ``tail`` is the end of the file."""
    at = tail.rfind(_END)
    at_64 = tail.rfind(_END_64, 0, max(at, 0))
    if at_64 >= 0:
        return int.from_bytes(tail[at_64 + 40 : at_64 + 48], "little")
    return int.from_bytes(tail[at + 12 : at + 16], "little") if at >= 0 else 0


def _iter_members(archive: zipfile.ZipFile, start: int, end: int | None) -> Iterator[Member]:
    for number, entry in enumerate(archive.infolist()[start:end], start):
        if not entry.is_dir():
            problem = _problem(entry)
            link = _target(archive, entry) if problem is None else None
            yield Member(number, entry.filename, problem, link, partial(_open_member, archive, entry))


def _problem(entry: zipfile.ZipInfo) -> Refusal | None:
    if entry.flag_bits & _ENCRYPTED:
        return Refusal("encrypted member of an archive", "unpack it with its password, and name what it holds")
    if entry.compress_type not in _METHODS:
        return Refusal("packed member of an archive", f"by zip's method {entry.compress_type}; unpack the archive")
    return None


def _target(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> str | None:
    if not stat.S_ISLNK(entry.external_attr >> 16):
        return None
    try:
        with archive.open(entry) as file:
            return file.read(_MAX_TARGET_BYTES).decode("utf-8", "replace")
    except _DAMAGE:
        return ""


@contextmanager
def _open_member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[ByteStream]:
    try:
        file = archive.open(entry)
    except _DAMAGE as error:
        raise _as_damage(error) from None
    with file:
        yield _Steady(file)


def _as_damage(error: Exception) -> DamagedInputError:
    """Return what an error of the library tells of a member; one of the system is raised as it is."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    return DamagedInputError(f"cut off or damaged ({error})")


class _Steady:
    """A member, unpacked in fixed steps; damage is raised once all before it has been read."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._rest = b""
        self._damage: DamagedInputError | None = None

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes."""
        if not self._rest and size:
            self._rest = self._unpack_next()
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def _unpack_next(self) -> bytes:
        if self._damage:
            raise self._damage
        try:
            return bytes(self._file.read1(_STEP_BYTES))
        except _DAMAGE as error:
            self._damage = _as_damage(error)
            raise self._damage from None
