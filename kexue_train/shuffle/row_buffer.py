"""Collects rows block by block in memory of a fixed size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.shuffle.rows import Rows, data_of, lengths_of, make_binary, offsets_of, values_bytes


class RowBuffer:
    """Texts are copied into place as they come, so that the rows are there as one without holding them twice.

    Args:
        text_bytes: Room for texts.
    """

    def __init__(self, text_bytes: int) -> None:
        self._data = np.empty(text_bytes, np.uint8)  # pages that are not filled take no memory
        self._text_bytes = 0
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._keys: list[npt.NDArray[np.uint64]] = []
        self._extras: list[pa.LargeBinaryArray] = []
        self._tickets: list[npt.NDArray[np.uint16]] = []
        self._origins: list[npt.NDArray[np.uint32]] = []

    def add(self, rows: Rows) -> None:
        """Copy the rows; they must fit. Nothing refers to ``rows`` afterwards: they may be views of a large buffer."""
        offsets, size = offsets_of(rows.texts), values_bytes(rows.texts)
        view = np.frombuffer(data_of(rows.texts), np.uint8)
        self._data[self._text_bytes : self._text_bytes + size] = view[offsets[0] : offsets[0] + size]
        self._text_bytes += size
        self._lengths.append(lengths_of(rows.texts))
        self._keys.append(rows.keys.copy())
        if rows.extras is not None:
            self._extras.append(rows.extras.take(pa.array(np.arange(len(rows)))))
        if rows.tickets is not None:
            self._tickets.append(rows.tickets.copy())
        if rows.origins is not None:
            self._origins.append(rows.origins.copy())

    def build(self) -> Rows:
        """All rows, in the order they were added in; at least one."""
        return Rows(
            np.concatenate(self._keys),
            make_binary(np.concatenate(self._lengths), self._data[: self._text_bytes]),
            pa.concat_arrays(self._extras) if self._extras else None,
            np.concatenate(self._tickets) if self._tickets else None,
            np.concatenate(self._origins) if self._origins else None,
        )
