"""Finds the input files a user means and what format each one has."""

from __future__ import annotations

import difflib
import glob
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kexue_train.corpus.streams import COMPRESSIONS, unreadable
from kexue_train.errors import CorpusError

logger = logging.getLogger(__name__)

Format = Literal["text", "jsonl", "parquet", "arrow"]

FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""File name suffix -> format."""
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


@dataclass(frozen=True, slots=True)
class Source:
    """One input file as it was when it was found."""

    path: str
    """Absolute."""
    format: Format
    compression: str | None
    bytes: int
    modified_ns: int

    @property
    def is_splittable(self) -> bool:
        """Whether byte ranges of it can be read on their own."""
        return self.compression is None and self.format in ("text", "jsonl")


def find_inputs(patterns: Sequence[str], *, format: Literal["auto"] | Format = "auto") -> list[Source]:
    """The files that ``patterns`` (files, folders, globs) name, sorted by absolute path, each file once.

    A folder stands for the data files below it, hidden ones left out; with ``format="auto"`` those with a known suffix.

    Raises:
        CorpusError: If a pattern names nothing, or a file cannot be read or has no known format.
    """
    if not patterns:
        raise CorpusError("no inputs; name files, folders or globs of .txt, .jsonl, .parquet or .arrow files")
    found: dict[tuple[int, int], Source] = {}
    for path in sorted({path for pattern in patterns for path in _expand(pattern, format)}, key=os.fspath):
        status = _stat(path)
        known = found.setdefault((status.st_dev, status.st_ino), _describe(path, status, format))
        if known.path != str(path):
            logger.warning("%s is the same file as %s and is read once", path, known.path)
    return list(found.values())


def split_suffixes(name: str) -> tuple[Format | None, str | None]:
    """Format and compression that a file name stands for: ``a.jsonl.gz`` is ``("jsonl", "gzip")``."""
    path = Path(name.lower())
    compression = COMPRESSIONS.get(path.suffix)
    return FORMATS.get(Path(path.stem).suffix if compression else path.suffix), compression


def _expand(pattern: str, format: str) -> list[Path]:
    path = Path(os.path.abspath(Path(pattern).expanduser()))  # noqa: PTH100  # links keep the name the user gave
    if path.is_dir():
        return _expand_folder(path, format)
    if os.path.lexists(path):  # before globbing: a name may hold brackets or stars
        return [path]
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(pattern) else []  # noqa: PTH207  # absolute
    if not matches:
        raise CorpusError(f"{pattern}: no such input file, folder or glob{_nearest(path)}")
    return [file for match in matches for file in (_expand(match, format) if Path(match).is_dir() else [Path(match)])]


def _expand_folder(folder: Path, format: str) -> list[Path]:
    names = [path for path in _walk(folder, set()) if format != "auto" or split_suffixes(path.name)[0]]
    if not names:
        raise CorpusError(
            f"{folder}: holds no data file; expected {', '.join(FORMATS)} (text also {', '.join(COMPRESSIONS)}), "
            "or say what the files are with --format"
        )
    return names


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Every file below ``folder`` that is not hidden; links are followed, each folder is entered once."""
    status = _stat(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None
    for child in children:
        if child.name.startswith("."):
            continue
        if child.is_dir():
            yield from _walk(child, seen)
        else:
            yield child


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:  # a dangling link, a loop of links, a folder without search permission
        raise unreadable(path, error) from None


def _describe(path: Path, status: os.stat_result, format: Literal["auto"] | Format) -> Source:
    if not stat.S_ISREG(status.st_mode):
        raise CorpusError(f"{path}: is a pipe, socket or device, not a regular file; write its data to a file first")
    by_name, compression = split_suffixes(path.name)
    resolved = by_name if format == "auto" else format
    if resolved is None:
        raise CorpusError(
            f"{path}: the format cannot be told from the name; expected {', '.join(FORMATS)} (text also "
            f"{', '.join(COMPRESSIONS)}); rename the file, or say what it is with --format text|jsonl|parquet|arrow"
        )
    if compression and resolved in ("parquet", "arrow"):
        raise CorpusError(f"{path}: {resolved} files are not read compressed; unpack it first (it compresses inside)")
    _check_magic(path, resolved, compression)
    return Source(str(path), resolved, compression, status.st_size, status.st_mtime_ns)


def _check_magic(path: Path, format: Format, compression: str | None) -> None:
    """Refuse a file that is plainly something else than its name says, before it gives thousands of bad records."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise unreadable(path, error) from None
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if not head:
        logger.warning("%s is empty", path)
        return
    if format in ("text", "jsonl"):
        expected: str | None = compression
        if found == "UTF-16":
            raise CorpusError(f"{path}: is UTF-16 text; convert it with: iconv -f UTF-16 -t UTF-8")
    else:
        expected = "parquet" if format == "parquet" else None
        if format == "arrow" and found in ("arrow", None):
            return
    if found != expected and not (compression == "bz2" and head.startswith(b"BZh")):
        raise CorpusError(
            f"{path}: is named as {compression or format} but its first bytes {head[:6]!r} are "
            f"{f'those of {found}' if found else 'not'}; give it the right suffix, or make it again"
        )


def _nearest(path: Path) -> str:
    folder = path.parent
    names = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {folder / near[0]}?"
    return "; check the path" if folder.is_dir() else f"; the folder {folder} does not exist"
