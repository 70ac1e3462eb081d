"""Reads the members of an archive, each as a file of its own: its name, or else its content, tells the format.

Nothing is unpacked to disk, so no name or link in an archive can reach a file outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from kexue_train.corpus.builder import Refusal, leave_out_only, reject_only
from kexue_train.corpus.content import HEAD_BYTES, begins_with_object, check_head, tell_head
from kexue_train.corpus.formats import COMPRESSIONS, FORMATS, is_archive, is_packed, load_function, split_suffixes
from kexue_train.corpus.forward_stream import ContainerDamagedError
from kexue_train.corpus.readers import check_options
from kexue_train.corpus.records import PART_BITS, ReadOptions, RecordBlock, reject
from kexue_train.corpus.signatures import find_readable
from kexue_train.corpus.streams import ByteStream, LentPath, Unpacked
from kexue_train.foundation.errors import CorpusError, DamagedInputError

_MAC_FOLDER = "__MACOSX"


class Member(NamedTuple):
    """One member of an archive that is no folder."""

    number: int
    """Its number from 0 among all members, folders included."""
    name: str
    problem: Refusal | None
    """Why it cannot be read, as far as the archive tells."""
    link: str | None
    """What it points to, if it is a link."""
    open: Callable[[], AbstractContextManager[ByteStream]]
    """Open it for reading; the members are read one after the other."""


def read_members(path: str, members: Iterator[Member], options: ReadOptions) -> Iterator[RecordBlock]:
    """Yield the records of all members; positions are ``member << PART_BITS | position in the member``.

    A member that is damaged, or something else than its name says, costs one rejected record, after those before the
    damage. Members that are hidden, of unknown format or links to others are left out and counted.

    Raises:
        ContainerDamagedError: If the archive is cut off or damaged.
        CorpusError: If a member is whole but cannot be used: without a text column, say.
    """
    for member in members:
        if reason := _why_left_out(member):
            yield leave_out_only(reason, options)
            continue
        following = member.number << PART_BITS  # the position after the last record
        try:
            for block in _read_member(path, member, options):
                if len(block.positions):
                    following = max(following, int(block.positions[-1]) + 1)
                following = max([following, *(entry.position + 1 for entry in block.rejected)])
                yield block
        except ContainerDamagedError:
            raise
        except DamagedInputError as error:
            yield _refuse(member, Refusal("damaged member of an archive", str(error)), options, following)


def _why_left_out(member: Member) -> str | None:
    parts = PurePosixPath(member.name).parts
    if any(part == _MAC_FOLDER or (part.startswith(".") and part.strip(".")) for part in parts):
        return "hidden member of an archive"
    if member.link is not None and not _leads_out(member):
        return "link within an archive"
    return None


def _leads_out(member: Member) -> bool:
    """Return whether a link points to something outside of the archive."""
    if (member.link or "").startswith("/"):
        return True
    depth = 0
    for part in (PurePosixPath(member.name).parent / (member.link or "")).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def _refuse(member: Member, refusal: Refusal, options: ReadOptions, position: int) -> RecordBlock:
    detail = f"{_shown(member.name)}: {refusal.detail}"
    return reject_only(reject(position, refusal.reason, detail, b""), options)


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _read_member(path: str, member: Member, options: ReadOptions) -> Iterator[RecordBlock]:
    first = member.number << PART_BITS
    if member.link is not None:
        leads_out = Refusal("link out of an archive", f"to {_shown(member.link)}, which is not in it")
        yield _refuse(member, leads_out, options, first)
        return
    if member.problem:
        yield _refuse(member, member.problem, options, first)
        return
    by_name, compression = split_suffixes(PurePosixPath(member.name).name)
    if refusal := _why_refused(by_name, member.name):
        yield _refuse(member, refusal, options, first)
        return
    if by_name is None and PurePosixPath(member.name).suffix and compression is None:
        yield leave_out_only("member of an archive of unknown format", options)
        return
    name = f"{path}/{_shown(member.name)}"
    with member.open() as opened:
        raw = _Peeked(opened)
        if by_name is None:
            found = find_readable(raw.peek(HEAD_BYTES))
            compression = found if found in COMPRESSIONS else None
        stream = _Peeked(Unpacked(name, raw, compression)) if compression else raw
        head = stream.peek(HEAD_BYTES)
        format = by_name or tell_head(head)
        if format is None:
            yield leave_out_only("member of an archive of unknown format", options)
            return
        if refusal := _why_refused(format, member.name):
            yield _refuse(member, refusal, options, first)
            return
        if format == "json" and begins_with_object(head):
            format = "jsonl"
        check_options(name, format, options)
        try:
            check_head(name, format, head)
        except CorpusError as error:
            yield _refuse(member, Refusal("member of an archive that is something else", str(error)), options, first)
            return
        for block in load_function(FORMATS[format].reader)(LentPath(name, stream), None, options):
            yield _with_member(block, first, member.name)


def _why_refused(format: str | None, name: str) -> Refusal | None:
    if is_archive(format):
        return Refusal("archive in an archive", "unpack the outer one, and name what it holds")
    if format and not FORMATS[format].reads_forward:
        return Refusal("table in an archive", f"{format} cannot be read inside one; unpack it, and name the file")
    if is_packed(name):
        return Refusal("packed member of an archive", "in a way that is not read; unpack it, and name what it holds")
    return None


def _with_member(block: RecordBlock, first: int, name: str) -> RecordBlock:
    rejected = [
        replace(entry, position=first + entry.position, detail=f"{_shown(name)}: {entry.detail}")
        for entry in block.rejected
    ]
    return replace(block, positions=block.positions + np.uint64(first), rejected=rejected)


class _Peeked:
    """A stream of which the beginning can be looked at before it is read."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._head = b""

    def peek(self, size: int) -> bytes:
        """Return the first ``size`` bytes, fewer of a shorter stream."""
        while len(self._head) < size and (data := self._stream.read(size - len(self._head))):
            self._head += data
        return self._head[:size]

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes, those that were looked at first."""
        if not self._head:
            return self._stream.read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data
