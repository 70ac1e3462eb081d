"""Scores -> labels. Pure NumPy; n records, K labels.

*Candidates-contrast* compares the labels of one record. *Samples-contrast* compares the records of a set: their scores
in order, cut into K equal parts, are the labels from the least related to the most. The cuts come from the set itself
(*transductive*: a label then depends on the other records) or from a development set (*thresholds*). Either assumes
that the classes are equally frequent there. Source: arXiv 2109.03564.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

Scores = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


def candidates_contrast(scores: Scores) -> Labels:
    """Return the column with the highest score, the first of equal ones: (n, K) -> (n,)."""
    best: Labels = scores.argmax(axis=1)
    return best


def samples_contrast(scores: Scores, num_labels: int, names: Sequence[str]) -> Labels:
    """Return labels (n,) by rank of the scores (n,): n // K of each, the remainder in the top one.

    Args:
        scores: (n,).
        num_labels: K.
        names: (n,) texts by whose hash equal scores are ordered: files may be sorted by label, and a model that gives
            one score to all must not profit from that.
    """
    ties = np.array([xxhash.xxh3_64_intdigest(name.encode()) for name in names], np.uint64)
    labels = np.empty(len(scores), np.int64)
    labels[np.lexsort((ties, scores))] = _parts(len(scores), num_labels)
    return labels


def find_thresholds(scores: Scores, num_labels: int) -> Scores:
    """Return the K - 1 lowest scores of the upper parts when (n,) sorted scores are cut into K equal parts.

    Raises:
        ValueError: If n < K: some part would be empty.
    """
    if len(scores) < num_labels:
        raise ValueError(f"{len(scores)} scores cannot be cut into {num_labels} parts")
    firsts = np.searchsorted(_parts(len(scores), num_labels), np.arange(1, num_labels))
    return np.sort(scores)[firsts]


def by_thresholds(scores: Scores, thresholds: Scores) -> Labels:
    """Count for every score (n,) how many of the rising thresholds it reaches."""
    return np.searchsorted(thresholds, scores, side="right")


def _parts(size: int, num_labels: int) -> Labels:
    """Return the part of every rank: (size,); all are in the top one where there are fewer ranks than parts."""
    in_each = size // num_labels
    if not in_each:
        return np.full(size, num_labels - 1)
    return np.minimum(np.arange(size) // in_each, num_labels - 1)
