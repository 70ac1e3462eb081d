"""Sorts the rows of a bucket by key in bounded memory, however large the bucket is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

ReadBatches = Callable[[], Iterator[pa.RecordBatch]]

_PIECE_BYTES = 4 * 2**20


def iter_sorted(read: ReadBatches, low: int, high: int, limit_bytes: int) -> Iterator[pa.Table]:
    """Yield the rows with ``low <= key_high < high`` in the order of their keys, in tables of a few MB.

    A pass over the bucket keeps the smallest keys that fit and leaves the rest to the next pass. So any amount is
    sorted in bounded memory (a single text may be larger), and a bucket that fits is read once.

    Args:
        read: Gives all rows of the bucket, in any order, as batches of the spill schema; called once for each pass.
        low: First key.
        high: First key beyond.
        limit_bytes: Text held at a time; about three times as much memory is used.
    """
    while low < high:
        held, low = _read_smallest(read, low, high, limit_bytes)
        if held:
            yield from _SortedRows.sort(held).pieces()


def text_bytes(table: pa.Table) -> int:
    """Bytes of the column ``text``."""
    return pc.sum(pc.binary_length(table.column("text"))).as_py() or 0


@dataclass(frozen=True, slots=True)
class _SortedRows:
    """Rows and their order; they are put in order piece by piece, which takes less memory than all at once."""

    table: pa.Table
    order: npt.NDArray[np.int64]
    """Rows of ``table`` by key; of copies of one text only the first."""
    copies: npt.NDArray[np.uint64] | None
    """With ``dedup``: how many records each row of ``order`` stands for."""

    @classmethod
    def sort(cls, held: list[pa.Table]) -> Self:
        """Take the rows out of ``held``, which is emptied to free its memory."""
        table = pa.concat_tables(held).combine_chunks()
        held.clear()
        high, low = table.column("key_high").to_numpy(), table.column("key_low").to_numpy()
        order = np.lexsort((low, high))
        if "copies" not in table.column_names:
            return cls(table, order, None)
        high, low = high[order], low[order]
        first = np.flatnonzero(np.concatenate([[True], (np.diff(high) != 0) | (np.diff(low) != 0)]))
        copies = np.add.reduceat(table.column("copies").to_numpy()[order], first)
        return cls(table, order[first], copies)

    def ends(self) -> npt.NDArray[np.int64]:
        """Bytes of text up to and with each row of ``order``."""
        lengths = pc.binary_length(self.table.column("text")).to_numpy()
        return np.cumsum(lengths[self.order], dtype=np.int64)

    def take(self, start: int, stop: int) -> pa.Table:
        """The rows ``order[start:stop]`` as a table of their own."""
        table = self.table.take(pa.array(self.order[start:stop]))
        if self.copies is None:
            return table
        return table.set_column(table.column_names.index("copies"), "copies", pa.array(self.copies[start:stop]))

    def pieces(self) -> Iterator[pa.Table]:
        """All rows in order."""
        edges = np.flatnonzero(np.diff(self.ends() // _PIECE_BYTES)) + 1
        for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(self.order)], strict=True):
            yield self.take(start, stop)

    def keep_smallest(self, cut: int, limit_bytes: int) -> tuple[pa.Table, int]:
        """The first rows, about ``limit_bytes`` but all of one key, and the first key that is not among them."""
        keys = self.table.column("key_high").to_numpy()[self.order]
        count = max(1, int(np.searchsorted(self.ends(), limit_bytes, side="right")))
        if count < len(keys) and keys[count] == keys[0]:
            count = int(np.searchsorted(keys, keys[0], side="right"))
        if count >= len(keys):
            return self.take(0, len(keys)), cut
        kept = int(np.searchsorted(keys, keys[count], side="left"))
        return self.take(0, kept), int(keys[count])


def _read_smallest(read: ReadBatches, low: int, cut: int, limit_bytes: int) -> tuple[list[pa.Table], int]:
    """The rows of the smallest keys that fit, and the first key that is not among them."""
    held: list[pa.Table] = []
    held_bytes = 0
    for batch in read():
        table = _select(pa.table(batch), low, cut)
        if not table.num_rows:
            continue
        held.append(table)
        held_bytes += text_bytes(table)
        if held_bytes > limit_bytes:
            table, cut = _SortedRows.sort(held).keep_smallest(cut, limit_bytes // 2)
            held, held_bytes = [table], text_bytes(table)
    return held, cut


def _select(table: pa.Table, low: int, cut: int) -> pa.Table:
    keys = table.column("key_high").to_numpy()
    mask = (keys >= np.uint64(low)) & (keys <= np.uint64(cut - 1))
    return table if mask.all() else table.filter(pa.array(mask))
