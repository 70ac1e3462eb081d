"""The order of the rows of a bucket: by key; equal keys by the hash of the row, so that where it stood says nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kexue_train.shuffle.keys import Words, hash_rows
from kexue_train.shuffle.rows import Rows, cut_evenly, lengths_of

Order = npt.NDArray[np.int64]

_PIECE_BYTES = 4 * 2**20


def order_rows(rows: Rows, *, drop_duplicates: bool) -> tuple[Order, Order]:
    """The rows in the order of the output, and those left out.

    Args:
        rows: Of one bucket, in input order; with ``drop_duplicates`` equal texts have equal keys.
        drop_duplicates: Leave out rows whose text stood before in the input.
    """
    order = np.argsort(rows.keys)
    tied = _in_runs(rows.keys[order])
    if not tied.any():  # equal keys are rare (two among n rows with probability n²/2⁶⁵), but for copies of a text
        return order, order[:0]
    order = np.argsort(rows.keys, kind="stable")
    among = order[tied]
    is_copy = np.zeros(len(order), bool)
    if drop_duplicates:
        is_copy[tied] = repeats(_hash(rows, among, with_extras=False))
    hashes = _hash(rows, among, with_extras=True)
    by_hash = np.lexsort((hashes[1], hashes[0], rows.keys[among]))
    order[tied], is_copy[tied] = among[by_hash], is_copy[tied][by_hash]
    return order[~is_copy], order[is_copy]


def repeats(hashes: Words) -> npt.NDArray[np.bool_]:
    """Which of n hashes occurred before, shape (n,)."""
    by_hash = np.lexsort((hashes[1], hashes[0]))  # stable
    high, low = hashes[0][by_hash], hashes[1][by_hash]
    result = np.zeros(len(by_hash), bool)
    result[by_hash[1:]] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    return result


def _in_runs(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of the sorted keys have an equal neighbour."""
    result = np.zeros(len(keys), bool)
    same = keys[1:] == keys[:-1]
    result[1:] = same
    result[:-1] |= same
    return result


def _hash(rows: Rows, among: Order, *, with_extras: bool) -> Words:
    hashes = np.zeros((2, len(among)), np.uint64)
    for start, stop in cut_evenly(lengths_of(rows.texts)[among], _PIECE_BYTES):  # a few MB are copied at a time
        taken = rows.take(among[start:stop])
        hashes[:, start:stop] = hash_rows(taken.texts, taken.extras if with_extras else None)
    return hashes
