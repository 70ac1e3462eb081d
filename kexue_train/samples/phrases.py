"""Chinese phrases found without a dictionary: characters that stand beside each other more often than by chance.

Neighbours a, b are *connected* if p_ab > min_probability and ln(p_ab / (p_a p_b)) > min_pmi. The maximal runs of
connected characters are the candidates, and those whose share is above min_probability are kept, with the characters
that stand alone, each with the number of its runs. A text is then cut by the largest sum of ln p over all ways to cover
it with them, which ``segmentation.py`` leaves to jieba.

Source: https://kexue.fm/archives/5577 with a window of 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kexue_train.samples.words import chinese_characters, code_points

MIN_PROBABILITY = 3e-6
MIN_PMI = 2.0  # nats
_MIN_COUNT = 5  # what occurs less often may be chance, however small the corpus
_SHIFT = 21  # bits of a code point
_MERGE_AT = 1 << 22  # pairs

Pairs = npt.NDArray[np.int64]
"""Ordered pairs of code points as ``first << 21 | second``."""


@dataclass(frozen=True)
class NeighbourCounts:
    """Occurrences of Chinese characters and of pairs of them side by side.

    Attributes:
        characters: (0x110000,) int64 by code point.
        pairs: (n,) rising.
        pair_counts: (n,) int64.
    """

    characters: npt.NDArray[np.int64]
    pairs: Pairs
    pair_counts: npt.NDArray[np.int64]

    def pmi(self) -> npt.NDArray[np.float64]:
        """Return ln(p_ab / (p_a p_b)) of every pair: (n,)."""
        p = self.characters / max(1, self.characters.sum())
        p_pair = self.pair_counts / max(1, self.pair_counts.sum())
        values: npt.NDArray[np.float64] = np.log(p_pair / (p[self.pairs >> _SHIFT] * p[self.pairs & (1 << _SHIFT) - 1]))
        return values

    def connected(self, *, min_probability: float, min_pmi: float) -> Pairs:
        """Return the pairs that are frequent and attract each other, rising."""
        frequent = self.pair_counts > _least(min_probability, self.pair_counts.sum())
        return self.pairs[frequent & (self.pmi() > min_pmi)]


def count_neighbours(texts: Iterable[str]) -> NeighbourCounts:
    """Count over ``texts``; their order does not matter."""
    characters = np.zeros(len(chinese_characters()), np.int64)
    parts: list[tuple[Pairs, npt.NDArray[np.int64]]] = []
    for text in texts:
        points, beside = _chinese(text)
        characters += np.bincount(points[chinese_characters()[points]], minlength=len(characters))
        parts.append(np.unique(_pairs(points)[beside], return_counts=True))
        if sum(len(pairs) for pairs, _ in parts) > _MERGE_AT:
            parts = [_merge(parts)]
    return NeighbourCounts(characters, *_merge(parts))


def find_phrases(
    texts: Callable[[], Iterable[str]], *, min_probability: float = MIN_PROBABILITY, min_pmi: float = MIN_PMI
) -> dict[str, int]:
    """Return the phrases and all single Chinese characters of the texts, with how often each stood alone.

    Args:
        texts: Gives the texts again at every call; their order does not matter.
        min_probability: Least share of a connected pair, and of a phrase.
        min_pmi: Least attraction of a connected pair, in nats.
    """
    counts = count_neighbours(texts())
    connected = counts.connected(min_probability=min_probability, min_pmi=min_pmi)
    runs = Counter(run for text in texts() for run in _runs(text, connected))
    least = _least(min_probability, runs.total())
    phrases = {run: count for run, count in runs.items() if len(run) > 1 and count > least}
    # A character that never stood alone still needs a probability, for the texts to come.
    singles = {c: max(1, runs[c]) for c in map(chr, np.flatnonzero(counts.characters).tolist())}
    return phrases | singles


def _least(min_probability: float, total: int) -> float:
    return max(min_probability * total, _MIN_COUNT - 1)


def _runs(text: str, connected: Pairs) -> Iterator[str]:
    """Yield the maximal runs of connected Chinese characters, single ones too."""
    points, beside = _chinese(text)
    joined = beside & np.isin(_pairs(points), connected)
    chinese = chinese_characters()[points]
    starts = np.flatnonzero(chinese & ~np.append(False, joined)[: len(points)])
    ends = np.flatnonzero(chinese & ~np.append(joined, False)[: len(points)]) + 1
    return (text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))


def _chinese(text: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the n code points of ``text``, and of every two neighbours whether both are Chinese: (n - 1,)."""
    points = code_points(text).astype(np.int64)
    chinese = chinese_characters()[points]
    return points, chinese[:-1] & chinese[1:]


def _pairs(points: npt.NDArray[np.int64]) -> Pairs:
    return points[:-1] << _SHIFT | points[1:]


def _merge(parts: list[tuple[Pairs, npt.NDArray[np.int64]]]) -> tuple[Pairs, npt.NDArray[np.int64]]:
    """Return the sums of counts per distinct pair."""
    pairs, counts = (np.concatenate([np.empty(0, np.int64), *(part[i] for part in parts)]) for i in range(2))
    distinct, which = np.unique(pairs, return_inverse=True)
    return distinct, np.bincount(which, weights=counts, minlength=len(distinct)).astype(np.int64)
