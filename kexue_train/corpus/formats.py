"""The formats of input files: what a name stands for, and whether the first bytes agree with it."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from typing import Literal

from kexue_train.corpus.streams import open_stream
from kexue_train.foundation.errors import CorpusError

logger = logging.getLogger(__name__)

Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "hub"]

FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""File name suffix -> format."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz", ".lz4": "lz4"}
"""File name suffix -> name of the compression."""
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ\x00": "xz",
    b"BZh91AY&SY": "bz2",
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_HEAD_BYTES = 1 << 16
SUFFIXES = f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"
"""What a message says is allowed."""


def split_suffixes(name: str) -> tuple[Format | None, str | None]:
    """Format and compression that a file name stands for: ``a.jsonl.gz`` is ``("jsonl", "gzip")``."""
    path = PurePosixPath(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    return FORMATS.get(PurePosixPath(path.stem).suffix if compression else path.suffix), compression


def resolve_format(path: str, by_name: Format | None, format: Literal["auto"] | Format) -> Format:
    """The format of a file whose name stands for ``by_name``, if the user asked for ``format``.

    Raises:
        CorpusError: If nothing tells it.
    """
    resolved = by_name if format == "auto" else format
    if resolved is None:
        raise CorpusError(
            f"{path}: the format cannot be told from the name; expected {SUFFIXES}; rename the file, or say what it "
            "is with --format text|jsonl|json|csv|tsv|parquet|arrow"
        )
    return resolved


def is_json_lines(path: str, compression: str | None) -> bool:
    """Whether a ``.json`` file begins with an object: many corpora give JSON Lines that name."""
    try:
        with open_stream(path, compression) as stream:
            return stream.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    except CorpusError:  # damaged from its first bytes on: reading it will say so
        return False


def check_magic(path: str, format: Format, compression: str | None) -> None:
    """Refuse a file that is plainly something else than its name says, before it gives thousands of bad records.

    Raises:
        CorpusError: If it cannot be read, or its first bytes are those of another format.
    """
    with open_stream(path) as stream:
        head = stream.read(16)
    if not head:
        logger.warning("%s is empty", path)
        return
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if found == "UTF-16" and not compression and format not in ("parquet", "arrow"):
        raise CorpusError(f"{path}: is UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8")
    if compression:
        allowed: set[str | None] = {compression}
    else:
        allowed = {"parquet"} if format == "parquet" else {"arrow", None} if format == "arrow" else {None}
    if found not in allowed and not (compression == "bz2" and head.startswith(b"BZh")):
        raise CorpusError(
            f"{path}: is named as {compression or format} but its first bytes {head[:6]!r} are "
            f"{f'those of {found}' if found else 'not'}; give it the right suffix, or make it again"
        )
