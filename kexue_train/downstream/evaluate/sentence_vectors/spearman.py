"""How far two lists of numbers agree in order."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.errors import EvaluationError

Numbers = npt.NDArray[np.floating] | npt.NDArray[np.integer]


def spearman(first: Numbers, second: Numbers) -> float:
    """Return Spearman's rank correlation of two (n,), -1 to 1; equal numbers share the mean of their ranks.

    Raises:
        EvaluationError: If there are fewer than two pairs, a number is not finite, or all numbers of a list are equal.
    """
    if len(first) < 2:
        raise EvaluationError(f"{len(first)} pairs cannot be ranked; give at least two")
    a, b = _centred_ranks(first, "cosines of the vectors"), _centred_ranks(second, "scores")
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def standard_error(rho: float, num_pairs: int) -> float:
    """Return the standard error of a Spearman correlation, by the number of pairs.

    Source: Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and Spearman correlations",
    2000: sqrt((1 + ρ²/2) / (n - 3)) on Fisher's scale.
    """
    return (1 - rho**2) * math.sqrt((1 + rho**2 / 2) / max(1, num_pairs - 3))


def _centred_ranks(values: Numbers, what: str) -> npt.NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise EvaluationError(f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} {what} are not finite")
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(counts) == 1:
        raise EvaluationError(f"all {len(values)} {what} are {values[0]:g}, so they cannot be ranked")
    ranks = np.cumsum(counts) - (counts - 1) / 2
    centred: npt.NDArray[np.float64] = ranks[place] - (len(values) + 1) / 2
    return centred
