"""Rows on their way from one file order to another: a text, the key it is sorted by, and what belongs to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.arrow_arrays import data_of, lengths_of, make_binary, offsets_of, to_arrow, values_bytes

_ROW_BYTES = 40
"""Key, length, offset, place, and bucket or origin of a row that is held."""


@dataclass(frozen=True, slots=True)
class Rows:
    """n rows; a struct of arrays."""

    keys: npt.NDArray[np.uint64]
    """Shape (n,): the output is sorted by it."""
    texts: pa.LargeBinaryArray
    """The n texts, as bytes."""
    extras: pa.LargeBinaryArray | None = None
    """The kept columns of each row as a JSON array; None if none are kept."""
    tickets: npt.NDArray[np.uint16] | None = None
    """Shape (n,): 0 = the row stays; g > 0 = an exact share of the rows with ticket g stays (``weights.py``)."""
    origins: npt.NDArray[np.uint32] | None = None
    """Shape (n,): the scatter task each row comes from; None in that task's own spill file, where all are alike."""

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def bytes(self) -> int:
        """Bytes of the texts and extras."""
        return values_bytes(self.texts) + (values_bytes(self.extras) if self.extras is not None else 0)

    def take(self, order: npt.NDArray[np.int64]) -> Self:
        """Return the rows ``order``, copied."""
        indices = to_arrow(order)
        return type(self)(
            self.keys[order],
            self.texts.take(indices),
            None if self.extras is None else self.extras.take(indices),
            None if self.tickets is None else self.tickets[order],
            None if self.origins is None else self.origins[order],
        )


def held_bytes(num_rows: int, num_bytes: int) -> int:
    """Return the memory that sorting takes for so many rows with so many bytes of texts and extras."""
    return num_bytes + _ROW_BYTES * num_rows


def as_binary(values: pa.Array) -> pa.LargeBinaryArray:
    """Return large strings or binaries as large binaries, without copying."""
    return values if pa.types.is_large_binary(values.type) else values.view(pa.large_binary())


def cut_evenly(lengths: npt.NDArray[np.int64], piece_bytes: int) -> Sequence[tuple[int, int]]:
    """Return consecutive (start, stop) that cover all rows, each of about ``piece_bytes``, at least one row."""
    if not len(lengths):
        return []
    ends = np.cumsum(lengths)
    cuts = (np.flatnonzero(np.diff(ends // piece_bytes)) + 1).tolist()
    return list(zip([0, *cuts], [*cuts, len(lengths)], strict=True))


class RowBuffer:
    """Rows are put into place as they come, so that they are there as one without being held twice.

    Args:
        num_rows: Room for rows.
        text_bytes: Room for their texts.
    """

    def __init__(self, num_rows: int, text_bytes: int) -> None:
        self._keys = np.empty(num_rows, np.uint64)
        self._lengths = np.empty(num_rows, np.uint32)
        self._data = np.empty(text_bytes, np.uint8)  # pages that are not filled take no memory
        self._num_rows = self._text_bytes = 0
        self._extras: list[pa.LargeBinaryArray] = []
        self._tickets: list[npt.NDArray[np.uint16]] = []
        self._origins: list[npt.NDArray[np.uint32]] = []

    def has_room(self, num_rows: int, text_bytes: int) -> bool:
        """Return whether so many more rows fit, with so many bytes of texts."""
        return self._num_rows + num_rows <= len(self._keys) and self._text_bytes + text_bytes <= len(self._data)

    def reserve(
        self, num_rows: int, text_bytes: int
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.uint8]]:
        """Return the places of the keys, text lengths and texts of the next rows, which must fit, to be filled."""
        rows = slice(self._num_rows, self._num_rows + num_rows)
        texts = slice(self._text_bytes, self._text_bytes + text_bytes)
        self._num_rows, self._text_bytes = rows.stop, texts.stop
        return self._keys[rows], self._lengths[rows], self._data[texts]

    def add_origins(self, origins: npt.NDArray[np.uint32]) -> None:
        """Add the origins of the rows that were added or reserved last."""
        self._origins.append(origins)

    def add(self, rows: Rows) -> None:
        """Copy the rows; they must fit. Nothing refers to ``rows`` afterwards: they may be views of a large buffer."""
        offsets, size = offsets_of(rows.texts), values_bytes(rows.texts)
        keys, lengths, texts = self.reserve(len(rows), size)
        keys[:], lengths[:] = rows.keys, lengths_of(rows.texts)
        texts[:] = np.frombuffer(data_of(rows.texts), np.uint8)[offsets[0] : offsets[0] + size]
        if rows.extras is not None:
            self._extras.append(rows.extras.take(to_arrow(np.arange(len(rows)))))
        if rows.tickets is not None:
            self._tickets.append(rows.tickets.copy())
        if rows.origins is not None:
            self.add_origins(rows.origins.copy())

    def build(self) -> Rows:
        """Return all rows, in the order they were added in."""
        return Rows(
            self._keys[: self._num_rows],
            make_binary(self._lengths[: self._num_rows], self._data[: self._text_bytes]),
            pa.concat_arrays(self._extras) if self._extras else None,
            np.concatenate(self._tickets) if self._tickets else None,
            np.concatenate(self._origins) if self._origins else None,
        )
