"""What the first bytes of a file tell: whether they fit its name, and its format where the name does not tell."""

from __future__ import annotations

import logging

from pydantic_core import from_json

from kexue_train.corpus.formats import COMPRESSIONS, FORMATS
from kexue_train.corpus.signatures import (
    Contents,
    find_encoding,
    find_magic,
    find_pointer,
    find_readable,
    find_text,
    find_web_page,
)
from kexue_train.corpus.streams import BOM, open_stream, read_head
from kexue_train.foundation.errors import CorpusError, DamagedInputError

logger = logging.getLogger(__name__)

_CHECKED_BYTES = 1 << 12
HEAD_BYTES = 1 << 16
"""How much of a file is looked at to tell its format."""


def check_content(path: str, format: str, compression: str | None, *, any_bytes: bool = False) -> None:
    """Refuse a file that is plainly something else than its name says.

    Args:
        path: Where it is; the standard input keeps what is looked at.
        format: The name of the format it is read as.
        compression: The name of its compression.
        any_bytes: Its lines are records whatever they hold, so that what they seem to hold is only warned of.

    Raises:
        CorpusError: If it cannot be read, or its first bytes are those of something else.
    """
    head = read_head(path, _CHECKED_BYTES)
    if not head:
        return
    if compression:
        _check_compression(path, compression, head)
        try:
            with open_stream(path, compression) as stream:
                head = stream.read(_CHECKED_BYTES)
        except DamagedInputError:  # reading it will say so, after the records before the damage
            return
    check_head(path, format, head, any_bytes=any_bytes)


def _check_compression(path: str, compression: str, head: bytes) -> None:
    if not head.startswith(COMPRESSIONS[compression].magics):
        found = find_pointer(path, head) or find_web_page(head) or find_magic(head) or find_text(head)
        raise _mismatch(f"{path}: the name says {compression}", head, found)


def check_head(path: str, format: str, head: bytes, *, any_bytes: bool = False) -> None:
    """Refuse a file that begins with ``head`` as something else than a file of ``format`` does.

    Raises:
        CorpusError: If it does.
    """
    expected, subject = FORMATS[format], f"{path}: is to be read as {format}"
    if pointer := find_pointer(path, head):
        raise _mismatch(subject, head, pointer)
    if expected.magic and head.startswith(expected.magic, expected.magic_at):
        return
    page = find_web_page(head)
    found = page or find_magic(head) or (None if expected.magic else find_encoding(head))
    if found and (any_bytes or (page and format == "text")):
        logger.warning("%s: seems to be %s; its lines are taken as they are", path, found.name)
    elif found or expected.needs_magic:
        raise _mismatch(subject, head, found)


def _mismatch(subject: str, head: bytes, found: Contents | None) -> CorpusError:
    if found:
        return CorpusError(f"{subject}, but the file is {found.name}; {found.remedy}")
    return CorpusError(f"{subject}, but it begins with {head[:6]!r}; correct the suffix, or write the file again")


def tell_format(path: str) -> tuple[str | None, str | None]:
    """Return format and compression of a file whose content leaves no doubt: magic bytes, or JSON objects; else None.

    Raises:
        CorpusError: If it cannot be read, or only stands for the data, as a pointer of Git LFS does.
    """
    head = _read_head(path, None, _CHECKED_BYTES)
    if pointer := find_pointer(path, head):
        raise _mismatch(f"{path}: is to be read as data", head, pointer)
    found = find_readable(head)
    compression = found if found in COMPRESSIONS else None
    try:
        head = _read_head(path, compression, HEAD_BYTES)
    except CorpusError:
        if compression is None:
            raise
        return None, None  # damaged from its first bytes on
    return tell_head(head), compression


def tell_head(head: bytes) -> str | None:
    """Return the format of a file that begins with ``head`` (``HEAD_BYTES`` of it), if that leaves no doubt."""
    found = find_readable(head)
    return found if found in FORMATS else _tell_json(head)


def is_json_lines(path: str, compression: str | None) -> bool:
    """Return whether a ``.json`` file begins with an object: many corpora give JSON Lines that name."""
    try:
        return begins_with_object(_read_head(path, compression, HEAD_BYTES))
    except CorpusError:  # damaged from its first bytes on: reading it will say so
        return False


def begins_with_object(head: bytes) -> bool:
    """Return whether the first thing in a file is a JSON object."""
    return head.removeprefix(BOM).lstrip().startswith(b"{")


def _read_head(path: str, compression: str | None, size: int) -> bytes:
    with open_stream(path, compression) as stream:
        return stream.read(size)


def _tell_json(head: bytes) -> str | None:
    """Return ``jsonl`` if every line is an object, ``json`` for an array of objects; the last one may be cut off."""
    is_cut = len(head) == HEAD_BYTES
    try:
        text = head.removeprefix(BOM).strip().decode("utf-8", "ignore" if is_cut else "strict")
        is_array = text.startswith("[")
        *lines, last = [text] if is_array else text.split("\n")
        records = [from_json(line) for line in lines if line.strip()]
        records.append(from_json(last, allow_partial=is_cut))
    except ValueError:
        return None
    records = records[0] if is_array else records
    return ("json" if is_array else "jsonl") if records and all(isinstance(entry, dict) for entry in records) else None
