"""Compares the documents that share a band key: which of them are near-duplicates, in time linear in their number.

A *group* holds the documents of one band key. In each round every group has a leader, which is compared with all
documents that are not yet connected with it. So a group whose documents are all alike takes one round; one of up to
33 documents takes as many as it needs to find every pair that connects something; a larger one ends after 32 rounds,
led first by those that are connected with none.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kexue_train.shuffle.keys import distinct_hashes
from kexue_train.shuffle.near.documents import DocumentReader, Numbers
from kexue_train.shuffle.near.minhash import Samples, similarities

Edges = npt.NDArray[np.uint64]
"""Shape (e, 2): numbers of two documents that are near-duplicates of each other."""

MAX_ROUNDS = 32
_PAIR_HASHES = 2**17
"""So many hashes of the samples of pairs are compared at a time."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was found in some groups."""

    edges: Edges
    compared: int
    """Pairs of distinct texts whose similarity was computed."""
    too_low: int
    """Those of them that were below the threshold."""
    largest: Numbers
    """The first documents of the largest connected parts, at most 32, ascending."""


def compare(numbers: Numbers, groups: npt.NDArray[np.int64], reader: DocumentReader, threshold: float) -> Comparison:
    """Compare the documents of some groups with each other.

    Args:
        numbers: Shape (n,): documents, ascending within a group.
        groups: Shape (n,): the group of each, ascending.
        reader: Where their entries and samples are.
        threshold: Least Jaccard similarity of near-duplicates.
    """
    distinct, which = np.unique(numbers, return_inverse=True)
    entries = reader.entries(distinct)
    # Of equal texts the first stands for all: they are in the same groups.
    firsts, same = distinct_hashes(np.stack([entries["high"], entries["low"]]))
    distinct, entries = distinct[firsts], entries[firsts]
    members = np.unique(groups * len(distinct) + same[which])
    group, texts = np.divmod(members, len(distinct))
    found = _Groups(group, texts, reader.samples(distinct, entries), threshold)
    found.compare()
    edges = np.concatenate([np.zeros((0, 2), np.int64), *found.edges])
    return Comparison(distinct[edges], found.compared, found.too_low, distinct[found.largest()])


class _Groups:
    """The distinct texts of all groups, and which are connected so far."""

    def __init__(
        self, groups: npt.NDArray[np.int64], texts: npt.NDArray[np.int64], samples: Samples, threshold: float
    ) -> None:
        self._starts = np.flatnonzero(np.append(True, groups[1:] != groups[:-1]))
        sizes = np.diff(np.append(self._starts, len(groups)))
        self._group = np.repeat(np.arange(len(sizes)), sizes)
        self._texts, self._samples, self._threshold = texts, samples, threshold
        self._label = np.arange(len(texts))  # connected members have the same
        self._has_led = np.zeros(len(texts), bool)
        self._is_connected = np.zeros(len(texts), bool)
        self.edges: list[npt.NDArray[np.int64]] = []
        self.compared = self.too_low = 0

    def compare(self) -> None:
        for _ in range(MAX_ROUNDS):
            leaders = self._choose_leaders()
            if (leaders < 0).all():
                return
            leader = leaders[self._group]
            others = np.flatnonzero((leader >= 0) & (self._label != self._label[leader]))
            self._connect(leader[others], others)

    def largest(self) -> npt.NDArray[np.int64]:
        """Return the first texts of the largest connected parts, ascending."""
        _, firsts, sizes = np.unique(self._label, return_index=True, return_counts=True)
        order = np.lexsort((firsts, -sizes))[:MAX_ROUNDS]
        return np.sort(self._texts[firsts[order]])

    def _choose_leaders(self) -> npt.NDArray[np.int64]:
        """Return the next leader of each group, the first that is connected with none, else the first; -1: none."""
        size = len(self._texts)
        rank = np.arange(size) + size * self._is_connected + 2 * size * self._has_led
        first = self._label[self._starts][self._group]
        is_open = np.logical_or.reduceat(self._label != first, self._starts)
        best = np.minimum.reduceat(rank, self._starts)
        leaders = np.where(is_open & (best < 2 * size), best % size, -1)
        self._has_led[leaders[leaders >= 0]] = True
        return leaders

    def _connect(self, leaders: npt.NDArray[np.int64], others: npt.NDArray[np.int64]) -> None:
        similar = self._similarities(self._texts[leaders], self._texts[others]) >= self._threshold
        self.compared += len(others)
        self.too_low += int((~similar).sum())
        leaders, others = leaders[similar], others[similar]
        _, ones = np.unique(self._label[others], return_index=True)  # one edge connects all that have a label
        self.edges.append(np.stack([self._texts[leaders[ones]], self._texts[others[ones]]], axis=1))
        joined = np.arange(len(self._label))
        joined[self._label[others]] = self._label[leaders]
        self._label = joined[self._label]
        self._is_connected[leaders] = self._is_connected[others] = True

    def _similarities(self, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        sizes = np.diff(self._samples.bounds)
        ends = np.cumsum(sizes[left] + sizes[right])
        cuts = [0, *(np.flatnonzero(np.diff(ends // _PAIR_HASHES)) + 1).tolist(), len(left)]
        parts = [similarities(self._samples, left[low:high], right[low:high]) for low, high in itertools.pairwise(cuts)]
        return np.concatenate(parts)
