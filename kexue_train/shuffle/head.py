"""The first rows of the order alone, which are a uniform sample of all rows.

A row is among the first n of all rows only if it is among the first n of its scatter task. So a task lets the others go
at once, and a sample that is small beside the corpus costs one pass over it and hardly any disk.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_ROW_BYTES = 32
"""Memory that a remembered key costs at its peak."""


class SmallestKeys:
    """The n smallest of the keys that came by."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._keys = np.zeros(0, np.uint64)

    @classmethod
    def within(cls, num_rows: int | None, memory_bytes: int) -> SmallestKeys | None:
        """Return the n smallest keys to keep track of; None if all rows are wanted, or too many to remember."""
        return None if num_rows is None or num_rows * _ROW_BYTES > memory_bytes else cls(num_rows)

    def admit(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Return which of ``keys`` are among the n smallest so far, equal ones included: shape (n,)."""
        merged = np.concatenate([self._keys, keys])
        if len(merged) > self._num_rows:
            merged = np.partition(merged, self._num_rows)[: self._num_rows]
        self._keys = merged
        if len(merged) < self._num_rows:
            return np.ones(len(keys), bool)
        return keys <= merged.max() if len(merged) else np.zeros(len(keys), bool)


def limits_of_shards(num_rows: int, shard_rows: npt.NDArray[np.int64]) -> list[int]:
    """Return how many rows of each shard are among the first ``num_rows``.

    Args:
        num_rows: At least 0.
        shard_rows: Shape (S,): the rows of each shard.
    """
    before = np.cumsum(shard_rows) - shard_rows
    limits: list[int] = np.clip(num_rows - before, 0, shard_rows).tolist()
    return limits
