"""Packed micro-batches in the two other forms: a sequence a row with padding, for transformers' models and for ours."""

from __future__ import annotations

import torch
from torch import Tensor

from kexue_train.samples.mlm import IGNORE_INDEX
from kexue_train.train.data import Tensors


def padded(batch: Tensors) -> Tensors:
    """Return a micro-batch without unused slots as transformers' models for pretraining take it.

    The same sequences with the same hidden tokens, in the same order: ``input_ids``, ``attention_mask``,
    ``token_type_ids`` and ``labels`` [sequences, longest], and ``next_sentence_label`` [sequences]; padding has the
    id 0 and, like what is not predicted, the label -100.
    """
    positions, is_real = batch["position_ids"].flatten(), batch["sequence_ids"].flatten() > 0
    begins = is_real & (positions == 0)
    row, column = (begins.cumsum(0) - 1)[is_real], positions[is_real]
    shape = int(begins.sum()), int(column.max()) + 1

    def laid_out(flat: Tensor, fill: int) -> Tensor:
        rows = torch.full(shape, fill)
        rows[row, column] = flat[is_real]
        return rows

    labels, pairs = (_at_slots(batch, name) for name in ("prediction", "pair"))
    return {
        "input_ids": laid_out(batch["input_ids"].flatten(), 0),
        "attention_mask": laid_out(is_real.long(), 0),
        "token_type_ids": laid_out(batch["token_type_ids"].flatten(), 0),
        "labels": laid_out(labels, IGNORE_INDEX),
        "next_sentence_label": pairs[begins],
    }


def one_sequence_per_row(batch: Tensors) -> Tensors:
    """Return the same micro-batch for our model, one sequence a row with padding behind it."""
    rows = padded(batch)
    slots = (rows["labels"].flatten() != IGNORE_INDEX).nonzero().flatten()
    length = rows["input_ids"].shape[1]
    is_pair = rows["next_sentence_label"] != IGNORE_INDEX
    mask = rows["attention_mask"]
    starts = (torch.arange(len(mask))[:, None] * length + torch.stack((torch.zeros(len(mask)), mask.sum(1)), 1)).long()
    ends = torch.cat((starts.flatten(), torch.tensor([mask.numel()]))).unique()  # no run of padding where a row is full
    return {
        "input_ids": rows["input_ids"],
        "sequence_ids": mask,
        "sequence_starts": ends.int(),
        "position_ids": torch.arange(length) * mask,
        "token_type_ids": rows["token_type_ids"],
        "prediction_slots": slots,
        "prediction_labels": rows["labels"].flatten()[slots],
        "pair_slots": is_pair.nonzero().flatten() * length,
        "pair_labels": rows["next_sentence_label"][is_pair],
    }


def _at_slots(batch: Tensors, name: str) -> Tensor:
    """Return the labels at their slots, (B · S,), elsewhere -100."""
    labels = torch.full((batch["input_ids"].numel(),), IGNORE_INDEX)
    labels[batch[f"{name}_slots"]] = batch[f"{name}_labels"]
    return labels
