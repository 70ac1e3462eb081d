"""Reads tar archives from front to back, plain or compressed, wherever they lie."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from kexue_train.corpus.archives import Member, read_members
from kexue_train.corpus.builder import Refusal
from kexue_train.corpus.forward_stream import ForwardStream
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.corpus.streams import ByteStream, open_stream
from kexue_train.foundation.errors import CorpusError

_HEADER_BYTES = 16 * 2**20
"""The most that the headers of one member may take; some hold attributes of any length."""
_STEP_BYTES = 1 << 18


def read_tar(path: str, compression: str | None, options: ReadOptions) -> Iterator[RecordBlock]:
    """Yield the records of all members, see ``archives.read_members``.

    Raises:
        DamagedInputError: If the archive is cut off or damaged, after the records before that.
        CorpusError: If it is no tar archive.
    """
    with open_stream(path, compression) as stream:
        yield from read_members(path, _iter_members(ForwardStream(path, stream)), options)


def _iter_members(stream: ForwardStream) -> Iterator[Member]:
    archive = _open(stream)
    if archive is None:
        return
    number = 0
    while (entry := _next(archive, stream)) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would remember all
        body = _Body(stream, entry.size if entry.isreg() and not entry.issparse() else 0)
        if not entry.isdir():
            link = _target(entry)
            yield Member(number, entry.name, _problem(entry), link, body.open)
        body.skip()
        number += 1
    _check_end(stream)


def _open(stream: ForwardStream) -> tarfile.TarFile | None:
    stream.allow(_HEADER_BYTES)
    try:
        return tarfile.TarFile(fileobj=cast("IO[bytes]", stream), encoding="utf-8", errors="surrogateescape")
    except tarfile.TarError as error:
        stream.check()
        if not stream.num_bytes:
            return None
        if len(stream.last) < tarfile.BLOCKSIZE:
            raise stream.damaged(str(error)) from None
        raise CorpusError(f"{stream.path}: is no tar archive ({error}); correct its suffix, or make it again") from None


def _next(archive: tarfile.TarFile, stream: ForwardStream) -> tarfile.TarInfo | None:
    stream.allow(_HEADER_BYTES)
    try:
        return archive.next()
    except tarfile.TarError as error:
        raise stream.damaged(str(error)) from None


def _check_end(stream: ForwardStream) -> None:
    """Make sure that the archive ends as it should: tarfile takes a damaged header for the end."""
    stream.check()
    if len(stream.last) < tarfile.BLOCKSIZE:
        raise stream.damaged("its end is missing")
    if stream.last.strip(b"\0"):
        raise stream.damaged("a header that is none")
    while True:
        stream.allow(_STEP_BYTES)
        if not stream.read(_STEP_BYTES):
            break
        if stream.last.strip(b"\0"):
            raise stream.damaged("data after the end; of several archives in one file only the first is read")
    stream.check()


def _target(entry: tarfile.TarInfo) -> str | None:
    """Return what a link points to, from its own folder as a symbolic link does."""
    if entry.issym():
        return entry.linkname
    if entry.islnk():  # counted from the root of the archive
        return "../" * entry.name.count("/") + entry.linkname.lstrip("/")
    return None


def _problem(entry: tarfile.TarInfo) -> Refusal | None:
    if entry.issparse():
        return Refusal("sparse member of an archive", "make the archive again without --sparse")
    if not (entry.isreg() or entry.issym() or entry.islnk()):
        return Refusal("member of an archive that is no file", "a device, a pipe or something unknown")
    return None


class _Body:
    """The data of one member, which lies in the stream from here on."""

    def __init__(self, stream: ForwardStream, size: int) -> None:
        self._stream, self._left = stream, size

    @contextmanager
    def open(self) -> Iterator[ByteStream]:
        yield self

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, fewer before the end of the member and before damage."""
        wanted = min(size, self._left)
        self._stream.allow(wanted)
        data = self._stream.read(wanted)
        self._left -= len(data)
        if wanted and not data:
            raise self._stream.damaged("a member is cut off")
        return data

    def skip(self) -> None:
        """Go to the end of the member."""
        while self._left:
            self.read(_STEP_BYTES)
