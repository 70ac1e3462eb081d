"""What the first bytes of a file tell: whether they fit its name, and its format where the name does not tell."""

from __future__ import annotations

import logging

from pydantic_core import from_json

from kexue_train.corpus.formats import COMPRESSIONS, FORMATS
from kexue_train.corpus.streams import BOM, open_stream
from kexue_train.foundation.errors import CorpusError

logger = logging.getLogger(__name__)

_MAGIC_BYTES = 16
_HEAD_BYTES = 1 << 16
_UTF16 = "UTF-16"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def check_magic(path: str, format: str, compression: str | None) -> None:
    """Refuse a file that is plainly something else than its name says, before it gives thousands of bad records.

    Raises:
        CorpusError: If it cannot be read, or its first bytes are those of another format.
    """
    head = _read_head(path, None, _MAGIC_BYTES)
    if not head:
        logger.warning("%s is empty", path)
        return
    expected = FORMATS[format]
    found = _recognise(head)
    if found == _UTF16 and not compression and not expected.magic:
        raise CorpusError(f"{path}: is UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8")
    if compression:
        is_right = head.startswith(COMPRESSIONS[compression].magic)
    else:
        is_right = found == expected.name or (found is None and not expected.needs_magic)
    if not is_right:
        raise CorpusError(
            f"{path}: the name says {compression or format}, but the first bytes {head[:6]!r} are "
            f"{f'those of {found}' if found else 'not'}; correct the suffix, or write the file again"
        )


def tell_format(path: str) -> tuple[str | None, str | None]:
    """Return format and compression of a file whose content leaves no doubt: magic bytes, or JSON objects; else None.

    Raises:
        CorpusError: If it cannot be read.
    """
    found = _recognise(_read_head(path, None, _MAGIC_BYTES))
    compression = found if found in COMPRESSIONS else None
    try:
        head = _read_head(path, compression, _HEAD_BYTES)
    except CorpusError:
        if compression is None:
            raise
        return None, None  # damaged from its first bytes on
    found = _recognise(head)
    return (found if found in FORMATS else _tell_json(head)), compression


def is_json_lines(path: str, compression: str | None) -> bool:
    """Return whether a ``.json`` file begins with an object: many corpora give JSON Lines that name."""
    try:
        return _read_head(path, compression, _HEAD_BYTES).removeprefix(BOM).lstrip().startswith(b"{")
    except CorpusError:  # damaged from its first bytes on: reading it will say so
        return False


def _read_head(path: str, compression: str | None, size: int) -> bytes:
    with open_stream(path, compression) as stream:
        return stream.read(size)


def _recognise(head: bytes) -> str | None:
    """Return the compression, format or encoding that surely begins with ``head``."""
    if head.startswith(_UTF16_MARKS):
        return _UTF16
    magics = {entry.name: entry.long_magic or entry.magic for entry in COMPRESSIONS.values()}
    magics |= {entry.name: entry.magic for entry in FORMATS.values() if entry.magic}
    return next((name for name, magic in magics.items() if head.startswith(magic)), None)


def _tell_json(head: bytes) -> str | None:
    """Return ``jsonl`` if every line is an object, ``json`` for an array of objects; the last one may be cut off."""
    is_cut = len(head) == _HEAD_BYTES
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
