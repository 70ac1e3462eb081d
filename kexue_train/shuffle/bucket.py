"""Reads the rows of a bucket from all spill files, and puts them in order in bounded memory.

The order is by key; equal keys by the hash of the row, so that its position in the input does not matter.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.arrow_arrays import lengths_of
from kexue_train.shuffle.keys import Words, hash_rows
from kexue_train.shuffle.rows import RowBuffer, Rows, cut_evenly, held_bytes
from kexue_train.shuffle.spill import SpillIndex, SpillReader, SpillWriter

Order = npt.NDArray[np.int64]

_HASH_BYTES = 4 * 2**20
_PIECE_BYTES = 12 * 2**20  # three record batches of the output, so that few of them are pieced together
_MAX_PARTS = 256
_TOLERANCE = 1.25
"""Cutting a bucket costs more than this much memory: one of lines of 80 bytes is planned a little too large."""


def order_rows(rows: Rows, *, drop_duplicates: bool) -> tuple[Order, Order]:
    """Return the rows in the order of the output, and the skipped ones.

    Args:
        rows: The rows of one bucket, in input order; with ``drop_duplicates`` equal texts have equal keys.
        drop_duplicates: Leave out rows whose text stood before in the input.
    """
    order = np.argsort(rows.keys)
    tied = _in_runs(rows.keys[order])
    if not tied.any():  # equal keys are rare (two among n rows with probability n²/2⁶⁵), but for copies of a text
        return order, order[:0]
    order = np.argsort(rows.keys, kind="stable")
    among = order[tied]
    is_copy = np.zeros(len(order), bool)
    if drop_duplicates:
        is_copy[tied] = repeats(_hash(rows, among, with_extras=False))
    hashes = _hash(rows, among, with_extras=True)
    by_hash = np.lexsort((hashes[1], hashes[0], rows.keys[among]))
    order[tied], is_copy[tied] = among[by_hash], is_copy[tied][by_hash]
    return order[~is_copy], order[is_copy]


def repeats(hashes: Words) -> npt.NDArray[np.bool_]:
    """Return which of n hashes occurred before, shape (n,)."""
    by_hash = np.lexsort((hashes[1], hashes[0]))  # stable
    high, low = hashes[0][by_hash], hashes[1][by_hash]
    result = np.zeros(len(by_hash), bool)
    result[by_hash[1:]] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return result


def _in_runs(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which of the sorted keys have an equal neighbour."""
    result = np.zeros(len(keys), bool)
    same = keys[1:] == keys[:-1]
    result[1:] = same
    result[:-1] |= same
    return result


def _hash(rows: Rows, among: Order, *, with_extras: bool) -> Words:
    hashes = np.zeros((2, len(among)), np.uint64)
    for start, stop in cut_evenly(lengths_of(rows.texts)[among], _HASH_BYTES):  # a few MB are copied at a time
        taken = rows.take(among[start:stop])
        hashes[:, start:stop] = hash_rows(taken.texts, taken.extras if with_extras else None)
    return hashes


class Pieces(Protocol):
    """Where the rows of a bucket come from."""

    def sizes(self) -> tuple[int, int]:
        """Return the number of rows, and the bytes of texts and extras."""
        ...

    def load(self, buffer: RowBuffer) -> None:
        """Put all rows, with origins, into ``buffer``, in input order."""
        ...

    def frames(self) -> Iterator[Rows]:
        """Yield all rows, with origins, in input order."""
        ...


@dataclass(frozen=True, slots=True)
class Ordered:
    """Some rows in the order of the output, and rows that were skipped as duplicates."""

    rows: Rows
    duplicates: Rows


def iter_ordered(
    pieces: Pieces, keys: tuple[int, int], *, limit_bytes: int, drop_duplicates: bool, scratch: Path
) -> Iterator[Ordered]:
    """Yield the rows of a bucket in order, a few MB at a time.

    A bucket that is too large is cut by key into parts, which go through a file of their own and then each through
    this function. So any amount takes bounded memory (unless a single text is larger) and one more read and write.

    Args:
        pieces: The bucket.
        keys: (low, high): its keys are in ``[low, high)``.
        limit_bytes: Memory for the rows held at a time.
        drop_duplicates: Leave out rows whose text occurred before in the input.
        scratch: Folder for that file.
    """
    for part in iter_parts(pieces, keys, limit_bytes=limit_bytes, scratch=scratch):
        yield from _order(part, drop_duplicates=drop_duplicates)


def _order(part: Pieces, *, drop_duplicates: bool) -> Iterator[Ordered]:
    rows = load_rows(part)
    yield from _in_pieces(rows, *order_rows(rows, drop_duplicates=drop_duplicates))


def load_rows(pieces: Pieces) -> Rows:
    """Return all rows, in input order."""
    buffer = RowBuffer(*pieces.sizes())
    pieces.load(buffer)
    return buffer.build()


def iter_parts(pieces: Pieces, keys: tuple[int, int], *, limit_bytes: int, scratch: Path) -> Iterator[Pieces]:
    """Yield the rows of a bucket cut by key, in the order of the keys, into parts that fit, none of them empty.

    Rows of one key stay together, so a part of one key alone may be larger than ``limit_bytes``. A part can be read
    until the next is asked for. The arguments are those of ``iter_ordered``.
    """
    num_rows, num_bytes = pieces.sizes()
    need = held_bytes(num_rows, num_bytes)
    low, high = keys
    if fits(pieces, limit_bytes) or num_rows <= 1 or high - low <= 1:
        if num_rows:
            yield pieces
        return
    num_parts = min(max(2, -(-2 * need // limit_bytes)), _MAX_PARTS, high - low)
    edges = [low + (high - low) * i // num_parts for i in range(num_parts + 1)]
    path = scratch / f"part-{uuid.uuid4().hex}.tmp"
    try:
        index = _cut(pieces, edges, path, limit_bytes // 2)
        with SpillReader(path, index) as reader:
            for part in range(num_parts):
                yield from iter_parts(
                    _Part(reader, part), (edges[part], edges[part + 1]), limit_bytes=limit_bytes, scratch=scratch
                )
    finally:
        path.unlink(missing_ok=True)


def fits(pieces: Pieces, limit_bytes: int) -> bool:
    """Return whether rows can be held at once."""
    return held_bytes(*pieces.sizes()) <= _TOLERANCE * limit_bytes


@dataclass(frozen=True, slots=True)
class _Part:
    reader: SpillReader
    part: int

    def sizes(self) -> tuple[int, int]:
        return self.reader.table(self.part, self.part + 1).sizes(self.part)

    def load(self, buffer: RowBuffer) -> None:
        for rows in self.frames():
            buffer.add(rows)

    def frames(self) -> Iterator[Rows]:
        return self.reader.frames(self.part)


def _cut(pieces: Pieces, edges: Sequence[int], path: Path, buffer_bytes: int) -> SpillIndex:
    inner = np.array(edges[1:-1], np.uint64)
    writer = SpillWriter(path, len(edges) - 1, buffer_bytes, fits_memory=False)
    try:
        for rows in pieces.frames():
            writer.add(rows, np.searchsorted(inner, rows.keys, side="right"))
        return writer.finish()
    finally:
        writer.close()


def _in_pieces(rows: Rows, order: Order, duplicates: Order) -> Iterator[Ordered]:
    lengths = lengths_of(rows.texts)
    for start, stop in cut_evenly(lengths[order], _PIECE_BYTES):
        yield Ordered(rows.take(order[start:stop]), rows.take(duplicates[:0]))
    for start, stop in cut_evenly(lengths[duplicates], _PIECE_BYTES):
        yield Ordered(rows.take(order[:0]), rows.take(duplicates[start:stop]))
