"""In which units the MLM and the NSP loss are measured before they are weighed (https://kexue.fm/archives/8870)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from kexue_train.batches.dataset import SampleDataset

# Half a million tokens give the entropy of the words to a hundredth of a nat.
_ROWS_COUNTED = 1024


class LossUnits(NamedTuple):
    """The size of each loss that counts as 1, in nats."""

    mlm: float = 1.0
    nsp: float = 1.0


def loss_units(kind: Literal["nat", "initial", "prior", "online"], dataset: SampleDataset) -> LossUnits | None:
    """Return the units that ``train.objective.loss_unit`` names, the same on every rank.

    None stands for each loss's own value, batch by batch. Zero would be no unit: the "prior" of a corpus of one
    word is 1 nat.
    """
    if kind == "online":
        return None
    if kind == "initial":
        return LossUnits(math.log(dataset.vocab_size), math.log(2))
    if kind == "prior":
        rows = np.arange(min(_ROWS_COUNTED, len(dataset)))
        return LossUnits(_word_entropy(dataset, rows) or 1.0, math.log(2))
    return LossUnits()


def balance(mlm: Tensor, nsp: Tensor, units: LossUnits | None, *, nsp_weight: float) -> Tensor:
    """The loss to minimise, from the two mean losses in nats (scalars); a loss of 0 counts as 0 in any unit."""
    if units is None:
        return _relative(mlm) + nsp_weight * _relative(nsp)
    return mlm / units.mlm + nsp_weight * nsp / units.nsp


def _relative(loss: Tensor) -> Tensor:
    """The loss over its value: always 1, and its gradient is that of log(loss)."""
    value = loss.detach()
    return loss / value.where(value > 0, 1)


def _word_entropy(dataset: SampleDataset, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    """Of the pieces in ``rows``, special ones aside, in nats."""
    counts = np.bincount(dataset.take(rows)["input_ids"].ravel(), minlength=dataset.vocab_size).astype(np.float64)
    counts[[id_ for name, id_ in dataset.special_token_ids.items() if name != "unk"]] = 0
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
