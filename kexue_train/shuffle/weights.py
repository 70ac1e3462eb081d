"""Up- and down-sampling: a file of weight w gives every document w times, exactly.

The whole part of w is as many copies of each document, with keys of their own. For the rest f, every document offers
one more copy with a *ticket*, a number per weight; of the n rows with a ticket exactly round(f n) stay. Which ones is
known once n is known, after the first pass: the row of rank r among them, in the final order, stays if a random
permutation of the n ranks sends r below round(f n). So the choice is exact and uniform, and costs no memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.counter_rng import Purpose, permute


@dataclass(frozen=True, slots=True)
class Sampling:
    """How often the documents of a file are taken."""

    whole: int = 1
    """Copies of every document."""
    ticket: int = 0
    """The ticket of one more copy that may stay; 0: no such copy."""


def plan_sampling(weights: Sequence[float], groups: Sequence[str] = ()) -> tuple[list[Sampling], list[float]]:
    """Return the sampling of files with these weights; and the share that stays, by ticket less 1.

    Files of equal weight have a ticket in common, if they are also of one group where ``groups`` are given.
    """
    parts = [
        (group, weight - math.floor(weight))
        for group, weight in zip(groups or [""] * len(weights), weights, strict=True)
    ]
    drawn = sorted({part for part in parts if part[1]})
    tickets = {part: 1 + i for i, part in enumerate(drawn)}
    samplings = [
        Sampling(math.floor(weight), tickets.get(part, 0)) for weight, part in zip(weights, parts, strict=True)
    ]
    return samplings, [share for _, share in drawn]


@dataclass(frozen=True, slots=True)
class Draw:
    """Which rows with one ticket stay, for the ranks that fall into one shard."""

    seed: int
    ticket: int
    first_rank: int
    """Rows with the ticket in earlier shards."""
    offered: int
    """n, over all shards."""
    share: float

    @property
    def kept(self) -> int:
        """Rows that stay, over all shards."""
        return round(self.share * self.offered)

    def stays(self, start: int, count: int) -> npt.NDArray[np.bool_]:
        """Return whether rows ``start ... start + count - 1`` with the ticket, counted within the shard, stay."""
        ranks = np.arange(self.first_rank + start, self.first_rank + start + count, dtype=np.int64)
        return permute(ranks, self.offered, self.seed, Purpose.SAMPLING, self.ticket) < self.kept
