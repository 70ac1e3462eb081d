"""How many slots of a micro-batch the heads score: a number that does not change, so that shapes are static.

The number of predicted pieces varies with the draws, yet the heads see arrays of one shape: unused slots point at slot
0 with the label -100 and weigh nothing. If there are more predictions than slots, which is rarer than once in 10^8
micro-batches, the arrays grow by whole steps: nothing is ever dropped, at the price of one more shape.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kexue_train.samples.mlm import IGNORE_INDEX

STEP = 64
"""The number of slots is a multiple of this, or all slots of the micro-batch."""
_SIGMAS = 6
_SLOTS_PER_PAIR = 16  # a shorter ``[CLS] A [SEP] B [SEP]`` is rare, and a pair's head costs next to nothing
_Ids = npt.NDArray[np.int64]


def prediction_capacity(batch: int, seq_len: int, probability: float, pieces_per_word: float) -> int:
    """Slots for the predicted pieces of ``batch`` rows: their mean and six standard deviations.

    Args:
        batch: Rows.
        seq_len: Slots of a row, of which [CLS] and [SEP] at least are never predicted.
        probability: That a word is predicted.
        pieces_per_word: Pieces in the word of a random piece, E[length²] / E[length]. The pieces of a word are
            predicted together, so the variance of their number is so many times that of independent ones.
    """
    pieces = batch * max(0, seq_len - 2)
    deviation = math.sqrt(pieces * probability * max(0.0, 1 - probability) * pieces_per_word)
    return round_up(math.ceil(pieces * probability + _SIGMAS * deviation), batch * seq_len)


def pair_capacity(batch: int, seq_len: int) -> int:
    """Slots for the [CLS] of the pairs of ``batch`` rows: one in sixteen."""
    return round_up(batch * seq_len // _SLOTS_PER_PAIR, batch * seq_len)


def round_up(number: int, most: int) -> int:
    """The next multiple of ``STEP``, but at most ``most``."""
    return min(max(1, math.ceil(number / STEP)) * STEP, most)


def fill_slots(slots: _Ids, labels: _Ids, capacity: int, most: int) -> tuple[_Ids, _Ids]:
    """``slots`` and ``labels`` (n,) in arrays of ``capacity`` or, if n is more, of n rounded up; the rest is unused."""
    size = capacity if len(slots) <= capacity else round_up(len(slots), most)
    filled_slots, filled_labels = np.zeros(size, np.int64), np.full(size, IGNORE_INDEX, np.int64)
    filled_slots[: len(slots)], filled_labels[: len(slots)] = slots, labels
    return filled_slots, filled_labels


def used_slots(slots: _Ids, labels: _Ids) -> tuple[_Ids, _Ids]:
    """What ``fill_slots`` was given."""
    used = labels != IGNORE_INDEX
    return slots[used], labels[used]
