"""Finds the inputs a user means, what format each one has and how it can be cut for reading in parallel."""

from __future__ import annotations

import logging
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from kexue_train.corpus.config import NamedSource
from kexue_train.corpus.content import check_content, is_json_lines, tell_format
from kexue_train.corpus.formats import (
    FORMATS,
    allowed_formats,
    allowed_suffixes,
    is_packed,
    load_function,
    split_suffixes,
)
from kexue_train.corpus.hub import HUB
from kexue_train.corpus.local_files import stat_local
from kexue_train.corpus.patterns import Note, some_of, two_weights, weigh_paths
from kexue_train.corpus.records import Document
from kexue_train.corpus.remote import is_uri, stat_remote
from kexue_train.corpus.streams import is_pipe
from kexue_train.foundation.credentials import without_credentials
from kexue_train.foundation.errors import CorpusError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """One input as it was when it was found."""

    path: str
    """An absolute path, a URI, or ``-`` for the standard input; see ``streams.is_pipe`` for the last."""
    format: str
    """Its name in ``FORMATS``."""
    compression: str | None
    bytes: int
    """Its size; 0 if that cannot be known beforehand."""
    modified_ns: int
    """Time of change, or a number that stands for the version; 0 if neither is known."""
    units: int
    """How many parts it can be cut into for reading: bytes of lines, row groups of Parquet, record batches of an Arrow
    file, shards of a hub dataset; else 1."""
    weight: float = 1.0
    """How often it is to count beside the other inputs."""
    named: NamedSource | None = None
    """The source of a mixture that it belongs to, whose settings come before those of the shuffle."""


def find_inputs(
    patterns: Sequence[str],
    *,
    format: str = "auto",
    document: Document = "line",
    weights: Mapping[str, float] | None = None,
    any_bytes: bool = False,
    note: Note = logger.warning,
) -> list[Source]:
    """Return the inputs that ``patterns`` name, sorted by path, each file once.

    A folder stands for the files it lists, else for the data files below it; see ``folders.choose_files``.

    Args:
        patterns: Files, folders, globs, URIs, ``hf://`` datasets, ``-`` for the standard input, or ``@file``: a file
            that holds one such pattern on each line.
        format: What the files are, if their names do not tell.
        document: What a document is in text files; it decides how they can be cut.
        weights: Weight of some of the patterns, spelt as in ``patterns``; the others have 1.
        any_bytes: If all inputs are text, their lines may hold any bytes, as for ``ReadOptions.raw``.
        note: Receives a line about what is not read, or is read once though named twice.

    Raises:
        CorpusError: If a pattern names nothing, a file cannot be read or has no known format, or a weight is wrong.
    """

    def say(line: str) -> None:
        note(line.encode("utf-8", "backslashreplace").decode("utf-8"))  # names need not be UTF-8

    if not patterns:
        raise CorpusError("no inputs; name files, folders or globs of .txt, .jsonl, .parquet or other data files")
    chosen = weigh_paths(patterns, format, weights or {}, say)
    found: dict[object, Source] = {}
    links: list[str] = []
    for path in sorted(chosen, key=lambda path: (without_credentials(path), path)):
        status = inspect_input(path)
        source = _describe(path, status, format, document, chosen[path])
        known = found.setdefault(status.identity, source)
        if known.weight != source.weight:
            raise two_weights(path, source.weight, known.weight)
        if known.path != path:
            links.append(f"{path} (as {known.path})")
    sources = list(found.values())
    if links:
        say(f"the same file by another name, and read once: {some_of(links)}")
    files = [source for source in sources if Path(source.path).is_file()]
    if empty := [source.path for source in files if not source.bytes]:
        say(f"empty: {some_of(empty)}")
    is_raw = any_bytes and all(source.format == "text" for source in sources)
    for source in files:  # elsewhere a look costs a request for each file; the reader takes it
        check_content(source.path, source.format, source.compression, any_bytes=is_raw)
    return sources


def check_unchanged(sources: Sequence[Source]) -> None:
    """Make sure that the inputs stood still since they were found.

    Raises:
        CorpusError: If one has another size or time of change, or is gone.
    """
    for source in sources:
        if not FORMATS[source.format].suffixes:  # no file
            continue
        try:
            status = inspect_input(source.path)
        except CorpusError:
            status = None
        if status is None or (status.bytes, status.modified_ns) != (source.bytes, source.modified_ns):
            raise CorpusError(
                f"{source.path}: was changed while it was read; let it be finished, then run the same command again"
            )


class Status(NamedTuple):
    """An input as it lies there."""

    identity: object
    """Equal for all names of one file."""
    bytes: int
    modified_ns: int
    has_ranges: bool
    """Whether it can be read from anywhere."""


def inspect_input(path: str) -> Status:
    """Return what is known of an input before it is read.

    Raises:
        CorpusError: If it is not there, or no regular file.
    """
    if is_pipe(path) or path.startswith(HUB):
        return Status(path, 0, 0, has_ranges=False)
    if is_uri(path):
        remote = stat_remote(path)
        return Status(
            without_credentials(path),
            remote.bytes or 0,
            remote.modified_ns,
            remote.has_ranges and remote.bytes is not None,
        )
    status = stat_local(Path(path))
    if not stat.S_ISREG(status.st_mode):
        raise CorpusError(
            f"{path}: is a pipe, socket or device, not a regular file; write its data to a file first, or pipe it in"
        )
    return Status((status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns, has_ranges=True)


def _describe(path: str, status: Status, format: str, document: Document, weight: float) -> Source:
    size, modified_ns = status.bytes, status.modified_ns
    if is_pipe(path):
        return Source(path, "text" if format == "auto" else format, None, size, modified_ns, 1, weight)
    by_name, compression = ("hub", None) if path.startswith(HUB) else split_suffixes(PurePosixPath(path).name)
    resolved = by_name if format == "auto" or by_name == "hub" else format
    if resolved is None:
        resolved, compression = tell_format(path)
    if resolved is None and is_packed(path):
        raise CorpusError(f"{path}: is packed in a way that is not read; unpack it, and name what it holds")
    if resolved is None:
        raise CorpusError(
            f"{path}: neither name nor content tell the format; expected {allowed_suffixes()}; rename the file, or "
            f"say what it is with --format {allowed_formats()}"
        )
    if resolved == "json" and is_json_lines(path, compression):
        resolved = "jsonl"
    units = 1 if compression else _count_units(path, resolved, status, document)
    return Source(path, resolved, compression, size, modified_ns, max(units, 1), weight)


def _count_units(path: str, name: str, status: Status, document: Document) -> int:
    """Count the units of an input that is not compressed; 1 also for a damaged one, as reading it will say."""
    format = FORMATS[name]
    if name == "hub":
        return int(load_function(str(format.unit_counter))(path))
    if not status.has_ranges or (name == "text" and document == "file"):
        return 1
    if format.is_cut_by_bytes:
        return status.bytes
    try:
        return int(load_function(format.unit_counter)(path)) if format.unit_counter else 1
    except CorpusError:
        return 1
