"""Rows -> the arrays a model is trained on: masked ids, what is to be predicted where, and the position of every slot.

The number of predicted pieces varies with the draws, yet the heads see arrays of one shape: unused slots point at slot
0 with the label -100 and weigh nothing. If there are more predictions than slots, which is rarer than once in 10^8
micro-batches, the arrays grow by whole steps: nothing is ever dropped, at the price of one more shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np
import numpy.typing as npt

from kexue_train.batches.dataset import SampleDataset
from kexue_train.samples.mlm import IGNORE_INDEX, MaskedRows, MaskingRates, mask_rows

STEP = 64
"""The number of slots is a multiple of this, or all slots of the micro-batch."""
_SIGMAS = 6
_SLOTS_PER_PAIR = 16  # a shorter ``[CLS] A [SEP] B [SEP]`` is rare, and a pair's head costs next to nothing
_Ids = npt.NDArray[np.int64]
PUBLISHED_RATES = MaskingRates()


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


def starts_capacity(batch: int, seq_len: int, sequences_per_row: float) -> int:
    """Places for the first slots of all sequences of ``batch`` rows, of a run of padding in each, and for the end.

    Their mean and six standard deviations, if the sequences of a row deviate as much as they are in the mean.
    """
    runs = sequences_per_row + 1
    return round_up(math.ceil(batch * runs + _SIGMAS * math.sqrt(batch) * runs), batch * seq_len) + 1


def round_up(number: int, most: int) -> int:
    """Return the next multiple of ``STEP``, but at most ``most``."""
    return min(max(1, math.ceil(number / STEP)) * STEP, most)


def fill_slots(slots: _Ids, labels: _Ids, capacity: int, most: int) -> tuple[_Ids, _Ids]:
    """``slots`` and ``labels`` (n,) in arrays of ``capacity`` or, if n is more, of n rounded up; the rest is unused."""
    size = capacity if len(slots) <= capacity else round_up(len(slots), most)
    filled_slots, filled_labels = np.zeros(size, np.int64), np.full(size, IGNORE_INDEX, np.int64)
    filled_slots[: len(slots)], filled_labels[: len(slots)] = slots, labels
    return filled_slots, filled_labels


def used_slots(slots: _Ids, labels: _Ids) -> tuple[_Ids, _Ids]:
    """Return what ``fill_slots`` was given."""
    used = labels != IGNORE_INDEX
    return slots[used], labels[used]


class Target(NamedTuple):
    """The keys of what one head predicts, in a batch."""

    slots: str
    labels: str


PREDICTION = Target("prediction_slots", "prediction_labels")
"""Masked pieces."""
PAIR = Target("pair_slots", "pair_labels")
"""Whether B follows A, at the [CLS] of a pair."""
TARGETS = (PREDICTION, PAIR)


class Batch(TypedDict):
    """Arrays of int64 but one. A slot number is row · S + position in the row; P, Q and R depend on B and S alone."""

    input_ids: _Ids
    """(B, S) masked ids."""
    sequence_ids: _Ids
    """(B, S): 0 = padding, 1, 2, ... = which sequence of the row; attention stays within one."""
    sequence_starts: npt.NDArray[np.int32]
    """(R,) int32: first slot numbers of the runs of equal ``sequence_ids``, rising; then B · S, to the end."""
    position_ids: _Ids
    """(B, S): 0, 1, ... from every [CLS] on; 0 in padding."""
    token_type_ids: _Ids
    """(B, S): 0 for ``[CLS] A [SEP]`` and padding, 1 for ``B [SEP]``."""
    prediction_slots: _Ids
    """(P,) slot numbers of the pieces to predict, rising; 0 where unused."""
    prediction_labels: _Ids
    """(P,) their original ids; -100 where unused."""
    pair_slots: _Ids
    """(Q,) slot numbers of the [CLS] of every pair, rising; 0 where unused."""
    pair_labels: _Ids
    """(Q,) 0 = B is next, 1 = B is from another document; -100 where unused."""


def make_batch(
    dataset: SampleDataset,
    rows: npt.NDArray[np.integer[Any]],
    epochs: npt.ArrayLike,
    *,
    seed: int,
    rates: MaskingRates = PUBLISHED_RATES,
) -> Batch:
    """Return the micro-batch of ``rows`` (B,) in ``epochs`` (scalar or (B,)); a row does not depend on the others.

    The mask of a row is a pure function of (seed, epoch, row).
    """
    columns = dataset.take(rows)
    masked = mask_rows(
        columns["input_ids"],
        columns["word_starts"],
        seed=seed,
        epoch=epochs,
        rows=rows,
        vocab_size=dataset.vocab_size,
        special_token_ids=dataset.special_token_ids,
        rates=rates,
    )
    lengths = columns["sequence_lengths"]
    first_slots = np.cumsum(lengths, axis=1) - lengths
    sequence_ids, position_ids, token_type_ids = _places(
        lengths, first_slots, columns["segment_a_lengths"], dataset.seq_len
    )
    places = starts_capacity(len(rows), dataset.seq_len, dataset.mean_per_row("sequences"))
    arrays = {
        "input_ids": masked.input_ids,
        "sequence_ids": sequence_ids,
        "sequence_starts": sequence_starts(lengths, dataset.seq_len, places),
        "position_ids": position_ids,
        "token_type_ids": token_type_ids,
    }
    for target, (slots, labels, capacity) in _find_targets(dataset, columns, first_slots, masked, rates).items():
        arrays[target.slots], arrays[target.labels] = fill_slots(slots, labels, capacity, sequence_ids.size)
    return cast(Batch, arrays)


def _find_targets(
    dataset: SampleDataset, columns: dict[str, _Ids], first_slots: _Ids, masked: MaskedRows, rates: MaskingRates
) -> dict[Target, tuple[_Ids, _Ids, int]]:
    """Return slots and labels of every target, and for how many of them there is room."""
    batch, seq_len = len(first_slots), dataset.seq_len
    pair_labels = columns["next_sentence_labels"]
    in_row, in_list = np.nonzero(pair_labels >= 0)
    predictions = prediction_capacity(batch, seq_len, rates.total, dataset.pieces_per_word)
    return {
        PREDICTION: (masked.slots, masked.labels, predictions),
        PAIR: (
            in_row * seq_len + first_slots[in_row, in_list],
            pair_labels[in_row, in_list],
            pair_capacity(batch, seq_len),
        ),
    }


def sequence_starts(lengths: _Ids, seq_len: int, capacity: int) -> npt.NDArray[np.int32]:
    """First slot numbers of the sequences of these lengths (B, K) and of padding, then the end until ``capacity``."""
    runs = _runs(lengths, seq_len)
    ends = np.cumsum(runs[runs > 0], dtype=np.int32)  # [3, 5, 24]: runs of 3, 2 and 19, which start at 0, 3 and 5
    size = capacity if len(ends) < capacity else round_up(len(ends), ends[-1]) + 1
    starts = np.full(size, ends[-1], np.int32)
    starts[0], starts[1 : len(ends)] = 0, ends[:-1]
    return starts


def _runs(lengths: _Ids, seq_len: int) -> _Ids:
    """Lengths of the sequences and, behind them, of the padding of each row, (B · (K + 1),)."""
    padding = seq_len - lengths.sum(axis=1, keepdims=True)
    return np.concatenate([lengths, padding], axis=1).ravel()


def _places(lengths: _Ids, first_slots: _Ids, segment_a_lengths: _Ids, seq_len: int) -> tuple[_Ids, _Ids, _Ids]:
    """Sequence, position and segment of every slot, from the lengths (B, K) of the sequences, K >= 1."""
    batch, most = lengths.shape
    runs = _runs(lengths, seq_len)

    def spread(per_sequence: _Ids, in_padding: int) -> _Ids:
        """Return a value per sequence (B, K) to each of its slots (B, seq_len)."""
        last = np.full((batch, 1), in_padding, np.int64)
        return np.repeat(np.concatenate([per_sequence, last], axis=1).ravel(), runs).reshape(batch, seq_len)

    sequence_ids = spread(np.broadcast_to(np.arange(1, most + 1), (batch, most)), 0)
    real = sequence_ids > 0
    position_ids = (np.arange(seq_len) - spread(first_slots, 0)) * real
    token_type_ids = (position_ids >= spread(segment_a_lengths, seq_len)).astype(np.int64)
    return sequence_ids, position_ids, token_type_ids


def without_unused_slots(batch: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Return the batch with its arrays of slots only as long as they are used; for devices that take any shape."""
    arrays = dict(batch)
    for target in TARGETS:
        if target.slots in arrays:
            arrays[target.slots], arrays[target.labels] = used_slots(arrays[target.slots], arrays[target.labels])
    return arrays
