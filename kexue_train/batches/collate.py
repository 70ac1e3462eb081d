"""Rows -> the arrays a model is trained on: masked ids, labels, and which sequence, position and segment a slot has."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from kexue_train.batches.dataset import SampleDataset
from kexue_train.samples.mlm import IGNORE_INDEX, mask_tokens

_Ids = npt.NDArray[np.int64]


class Batch(TypedDict):
    """Arrays of shape (B, S), int64."""

    input_ids: _Ids
    """Masked ids."""
    labels: _Ids
    """Original ids where a piece is to be predicted, else -100."""
    sequence_ids: _Ids
    """0 = padding, 1, 2, ... = which sequence of the row; attention stays within one."""
    position_ids: _Ids
    """0, 1, ... from every [CLS] on; 0 in padding."""
    token_type_ids: _Ids
    """0 for ``[CLS] A [SEP]`` and padding, 1 for ``B [SEP]``."""
    next_sentence_labels: _Ids
    """At each pair's [CLS] 0 = B is next, 1 = B is from another document; else -100."""


def make_batch(
    dataset: SampleDataset,
    rows: npt.NDArray[np.integer[Any]],
    epochs: npt.ArrayLike,
    *,
    seed: int,
    mask_probability: float = 0.12,
    keep_probability: float = 0.015,
    random_probability: float = 0.015,
) -> Batch:
    """The micro-batch of ``rows`` (B,) in ``epochs`` (scalar or (B,)); a row's arrays do not depend on the others.

    The mask of a row is a pure function of (seed, epoch, row). For the probabilities see ``mask_tokens``.
    """
    columns = dataset.take(rows)
    input_ids, labels = mask_tokens(
        columns["input_ids"],
        columns["word_starts"],
        seed=seed,
        epoch=epochs,
        rows=rows,
        vocab_size=dataset.vocab_size,
        special_token_ids=dataset.special_token_ids,
        mask_probability=mask_probability,
        keep_probability=keep_probability,
        random_probability=random_probability,
    )
    structure = _structure(
        columns["sequence_lengths"], columns["segment_a_lengths"], columns["next_sentence_labels"], dataset.seq_len
    )
    return {"input_ids": input_ids, "labels": labels, **structure}


class _Structure(TypedDict):
    sequence_ids: _Ids
    position_ids: _Ids
    token_type_ids: _Ids
    next_sentence_labels: _Ids


def _structure(lengths: _Ids, segment_a_lengths: _Ids, pair_labels: _Ids, seq_len: int) -> _Structure:
    """What follows from the lengths (B, K) of the sequences alone, K >= 1."""
    batch, most = lengths.shape
    first_slots = np.cumsum(lengths, axis=1) - lengths
    padding = seq_len - lengths.sum(axis=1, keepdims=True)
    runs = np.concatenate([lengths, padding], axis=1).ravel()

    def spread(per_sequence: _Ids, in_padding: int) -> _Ids:
        """A value per sequence (B, K) to each of its slots (B, seq_len)."""
        last = np.full((batch, 1), in_padding, np.int64)
        return np.repeat(np.concatenate([per_sequence, last], axis=1).ravel(), runs).reshape(batch, seq_len)

    sequence_ids = spread(np.broadcast_to(np.arange(1, most + 1), (batch, most)), 0)
    real = sequence_ids > 0
    position_ids = np.where(real, np.arange(seq_len) - spread(first_slots, 0), 0)
    token_type_ids = (real & (position_ids >= spread(segment_a_lengths, 0))).astype(np.int64)
    labels = np.full((batch, seq_len), IGNORE_INDEX, np.int64)
    in_row, in_list = np.nonzero(lengths)
    labels[in_row, first_slots[in_row, in_list]] = pair_labels[in_row, in_list]
    return {
        "sequence_ids": sequence_ids,
        "position_ids": position_ids,
        "token_type_ids": token_type_ids,
        "next_sentence_labels": labels,
    }
