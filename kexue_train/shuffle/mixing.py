"""How well a shuffle mixed, measured on the real result: where a row stood says nothing about where it stands now."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_GROUPS = 32
"""Files are taken together in so many groups, in their order."""


@dataclass(slots=True)
class OrderSums:
    """Sums over the rows of one shard: x is the piece of the input a row comes from, y its place in the shard."""

    rows: int = 0
    x: int = 0
    xx: int = 0
    xy: int = 0

    def add(self, origins: npt.NDArray[np.uint32] | None, first: int) -> None:
        """Add the rows at places ``first``, ``first + 1``, ... of the shard."""
        if origins is None:
            return
        x = origins.astype(np.int64)
        y = np.arange(first, first + len(x), dtype=np.int64)
        self.rows += len(x)
        self.x += int(x.sum())
        self.xx += int((x * x).sum())
        self.xy += int((x * y).sum())


def rank_correlation(shards: Sequence[OrderSums]) -> dict[str, float] | None:
    """Return the correlation of the rows' input pieces with their output positions, over all shards.

    Returns:
        The coefficient, and its standard deviation in a uniform shuffle; None where all rows come from one piece.
    """
    n = sum(shard.rows for shard in shards)
    x, xx, xy, first = 0, 0, 0, 0
    for shard in shards:
        x, xx, xy = x + shard.x, xx + shard.xx, xy + shard.xy + first * shard.x
        first += shard.rows
    y, yy = n * (n - 1) // 2, (n - 1) * n * (2 * n - 1) // 6
    variance = (n * xx - x * x) * (n * yy - y * y)
    if n < 2 or not variance:
        return None
    return {
        "coefficient": round((n * xy - x * y) / math.sqrt(variance), 6),
        "standard_deviation": round(1 / math.sqrt(n - 1), 6),
    }


def group_of(file_index: int, num_files: int) -> int:
    """Return the group of a file, from 0."""
    return file_index if num_files <= MAX_GROUPS else file_index * MAX_GROUPS // num_files


def count_groups(counts: Iterable[tuple[int, Sequence[int]]], num_files: int, num_shards: int) -> npt.NDArray[np.int64]:
    """Return rows by group and shard, shape (groups, S), from (file, its rows by shard)."""
    table = np.zeros((min(num_files, MAX_GROUPS), num_shards), np.int64)
    for file_index, rows in counts:
        table[group_of(file_index, num_files)] += rows
    return table


def source_mixing(counts: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Measure how evenly the groups (rows) lie over the shards (columns): Pearson's chi-square of independence.

    In a uniform shuffle of many documents ``chi_square`` is about ``degrees_of_freedom``, give or take twice
    ``sqrt(2 * degrees_of_freedom)``. ``worst_shard`` is the one that contributes most to it.
    """
    used = counts[counts.sum(1) > 0]
    expected = used.sum(1, keepdims=True) * used.sum(0, keepdims=True) / max(used.sum(), 1)
    by_shard = np.divide((used - expected) ** 2, expected, out=np.zeros_like(expected), where=expected > 0).sum(0)
    worst = int(by_shard.argmax())
    return {
        "chi_square": round(float(by_shard.sum()), 3),
        "degrees_of_freedom": (used.shape[0] - 1) * (int((used.sum(0) > 0).sum()) - 1),
        "worst_shard": {
            "shard": worst,
            "chi_square": round(float(by_shard[worst]), 3),
            "degrees_of_freedom": used.shape[0] - 1,
        },
    }
