"""Several sample folders read as one stream, in given shares: which folder a position reads is a pure function.

The stream is cut into windows of 10 000 positions. In every window each folder has exactly its quota of them, in
random order. So a folder's own position is (windows before) · quota + (its positions before in this window), and its
rows come in its own epochs: a small folder with a large share simply comes round more often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.counter_rng import Purpose, random_words

WINDOW = 10_000
"""Positions of a window; shares are exact to one in so many."""
_Positions = npt.NDArray[np.int64]


def quotas(weights: Sequence[float]) -> tuple[int, ...]:
    """Positions of each folder in a window: ``WINDOW`` shared out by ``weights``, largest remainders rounded up.

    Raises:
        ValueError: If a weight is not positive, or so small a share that its quota is 0.
    """
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights {list(weights)} must all be numbers above 0")
    exact = np.asarray(weights, np.float64) / sum(weights) * WINDOW
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: WINDOW - shares.sum()]] += 1
    if not shares.all():
        raise ValueError(f"weights {list(weights)} give one folder less than 1/{WINDOW} of all rows")
    return tuple(shares.tolist())


def split(
    positions: _Positions, shares: tuple[int, ...], seed: int, purpose: Purpose = Purpose.MIXTURE
) -> tuple[_Positions, _Positions]:
    """(folder, position in the folder's own stream) of ``positions`` (n,) of the mixture, both (n,) int64.

    A window is as long as the sum of the shares; every purpose has orders of its own.
    """
    windows, offsets = np.divmod(positions, sum(shares))
    folders, own = np.empty_like(positions), np.empty_like(positions)
    for window in np.unique(windows):
        here = windows == window
        folders_of_window, ranks = _window(shares, int(window), seed, purpose)
        folders[here], own[here] = folders_of_window[offsets[here]], ranks[offsets[here]]
    return folders, own + windows * np.asarray(shares)[folders]


@lru_cache(maxsize=4)
def _window(shares: tuple[int, ...], window: int, seed: int, purpose: Purpose) -> tuple[_Positions, _Positions]:
    """Return for every position of the window its folder, and how many positions before it have that folder."""
    size = sum(shares)
    words = random_words(seed, purpose, window, np.arange(size, dtype=np.uint64))[0]
    folders, ranks = np.empty(size, np.int64), np.empty(size, np.int64)
    folders[np.argsort(words, kind="stable")] = np.repeat(np.arange(len(shares)), shares)
    for folder, share in enumerate(shares):
        ranks[folders == folder] = np.arange(share)
    return folders, ranks
