"""The pass over the bands: brings the documents of a band key together and connects the near-duplicates among them.

The rows of a bucket come through the engine of the shuffle. What is compared with what depends on the documents alone,
not on memory or buckets: documents of one key come in the order of the corpus, and a long run of them is compared in
pieces of ``_PIECE`` documents, to each of which up to 32 unconnected documents of the pieces before it are added.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.arrow_arrays import data_of, offsets_of
from kexue_train.foundation.artifacts import file_checksum, write_atomic
from kexue_train.foundation.runtime import keep_freed_memory_of
from kexue_train.foundation.write_behind import new_file
from kexue_train.shuffle.bucket import fits, iter_parts, load_rows
from kexue_train.shuffle.keys import bucket_bounds
from kexue_train.shuffle.near.comparing import Edges, compare
from kexue_train.shuffle.near.documents import DocumentReader, Numbers
from kexue_train.shuffle.near.grouping import spanning_edges
from kexue_train.shuffle.near.signing import signed_paths
from kexue_train.shuffle.rows import Rows, cut_evenly
from kexue_train.shuffle.segments import read_spill_list, spilled_buckets

_PIECE = 1024


@dataclass(frozen=True, slots=True)
class MatchTask:
    """What one call of ``match`` needs."""

    index: int
    first: int
    stop: int
    """The buckets ``[first, stop)``."""
    num_buckets: int
    threshold: float
    limit_bytes: int
    """Memory for the rows held at a time."""
    folder: str
    """Where the list of the files of bands lies, and where the result goes."""


@dataclass(slots=True)
class MatchResult:
    """What a match task did; its JSON form is its done marker."""

    candidates: int = 0
    """Pairs of distinct texts that were compared; one may count once for each band."""
    too_low: int = 0
    """Those below the threshold."""
    edges: int = 0
    checksum: str = ""
    """Of the file of edges."""

    @classmethod
    def read(cls, folder: Path, index: int) -> Self | None:
        """Return the result of a task if it is done and its file is whole."""
        marker, edges = match_paths(folder, index)
        if not (marker.exists() and edges.exists()):
            return None
        result = cls(**json.loads(marker.read_text(encoding="utf-8")))
        return result if file_checksum(edges) == result.checksum else None


def match_paths(folder: Path, index: int) -> tuple[Path, Path]:
    """Return the done marker of a task, and its file of edges: pairs of document numbers."""
    return folder / f"match-{index:06d}.json", folder / f"match-{index:06d}.edges"


def read_edges(folder: Path, index: int) -> Edges:
    """Return what a task found, shape (e, 2)."""
    return np.fromfile(match_paths(folder, index)[1], "<u8").reshape(-1, 2).astype(np.uint64)


def match(task: MatchTask) -> None:
    """Do ``task``; done again, it writes the same files."""
    keep_freed_memory_of(match)
    folder = Path(task.folder)
    files = read_spill_list(task.folder)
    reader = DocumentReader([_documents_of(Path(file.path)) for file in files])
    found = _Found(reader, task.threshold)
    for bucket, pieces in spilled_buckets(files, range(task.first, task.stop)):
        bounds = bucket_bounds(bucket, task.num_buckets)
        for part in iter_parts(pieces, bounds, limit_bytes=task.limit_bytes, scratch=folder):
            if fits(part, task.limit_bytes):
                _match_keys(load_rows(part), found)
            else:
                _match_long(map(_numbers, part.frames()), found)  # too many documents of one key
        found.reduce()
    marker, path = match_paths(folder, task.index)
    with new_file(path, durable=False) as file:  # the marker has its checksum
        file.write(found.edges.astype("<u8").tobytes())
    found.result.edges, found.result.checksum = len(found.edges), file.checksum
    write_atomic(marker, json.dumps(asdict(found.result)))


def _documents_of(bands: Path) -> tuple[Path, Path]:
    return signed_paths(bands.parent, bands.stem)[1:]


class _Found:
    """What was found so far."""

    def __init__(self, reader: DocumentReader, threshold: float) -> None:
        self._reader, self._threshold = reader, threshold
        self.result = MatchResult()
        self.edges = np.zeros((0, 2), np.uint64)
        self._new: list[Edges] = []

    def compare(self, numbers: Numbers, groups: npt.NDArray[np.int64]) -> Numbers:
        """Compare the documents of some groups; returns the first ones of the largest connected parts."""
        compared = compare(numbers, groups, self._reader, self._threshold)
        self.result.candidates += compared.compared
        self.result.too_low += compared.too_low
        self._new.append(compared.edges)
        return compared.largest

    def reduce(self) -> None:
        """Keep as many edges as connect what they connect."""
        self.edges, self._new = spanning_edges(np.concatenate([self.edges, *self._new])), []


def _match_keys(rows: Rows, found: _Found) -> None:
    """Compare the documents of each key of ``rows``."""
    order = np.argsort(rows.keys, kind="stable")
    keys, numbers = rows.keys[order], _numbers(rows)[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    sizes = np.diff(np.append(starts, len(keys)))
    for group in np.flatnonzero(sizes > _PIECE).tolist():
        _match_long([numbers[starts[group] : starts[group] + sizes[group]]], found)
    chosen = (sizes > 1) & (sizes <= _PIECE)
    numbers = numbers[np.repeat(chosen, sizes)]
    sizes = sizes[chosen]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    ends = np.cumsum(sizes)
    for first, stop in cut_evenly(sizes, _PIECE):
        members = slice(ends[first] - sizes[first], ends[stop - 1])
        found.compare(numbers[members], groups[members])


def _match_long(parts: Iterable[Numbers], found: _Found) -> None:
    """Compare many documents of one key, piece by piece."""
    carried = np.zeros(0, np.uint64)
    for piece in _in_pieces(parts):
        numbers = np.concatenate([carried, piece])
        carried = found.compare(numbers, np.zeros(len(numbers), np.int64))
        found.reduce()


def _in_pieces(parts: Iterable[Numbers]) -> Iterator[Numbers]:
    """Yield numbers ``_PIECE`` at a time, however they come."""
    held = np.zeros(0, np.uint64)
    for part in parts:
        held = np.concatenate([held, part])
        whole = len(held) // _PIECE * _PIECE
        yield from held[:whole].reshape(-1, _PIECE)
        held = held[whole:]
    if len(held):
        yield held


def _numbers(rows: Rows) -> Numbers:
    offset = int(offsets_of(rows.texts)[0])
    return np.frombuffer(data_of(rows.texts), "<u8", len(rows), offset).astype(np.uint64)
