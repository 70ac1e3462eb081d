"""The rows that trainings read and are scored on: for each seed other rows and masks, no row twice in a training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from kexue_train.batches.collate import make_batch, without_unused_slots
from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.errors import ConfigError
from kexue_train.train.data import Tensors

_HELDOUT_BATCH = 64
_GOLDEN = 0.618
"""How far apart, as a share of all rows, the seeds begin: so no few of them begin near each other."""


def training_batches(dataset: SampleDataset, num_batches: int, rows_each: int, seed: int) -> Iterator[Tensors]:
    """Yield micro-batches of ``rows_each`` rows as the CPU takes them, without unused slots.

    Raises:
        ConfigError: If the samples have not so many rows to train on.
    """
    total, first = dataset.num_training_rows, len(dataset.heldout_rows)
    if num_batches * rows_each > total:
        raise ConfigError(
            f"{num_batches * rows_each:,} rows are asked for, but the samples have {total:,} to train on, and none is "
            "read twice; make more samples, or train for fewer steps"
        )
    place = int(seed * _GOLDEN * total) % total
    for number in range(num_batches):
        rows = first + (place + number * rows_each + np.arange(rows_each)) % total
        yield _tensors(dataset, rows, seed)


def heldout_batches(dataset: SampleDataset, num_rows: int) -> Iterator[Tensors]:
    """Yield the first held-out rows, their masks always the same."""
    rows = dataset.heldout_rows[:num_rows]
    for start in range(0, len(rows), _HELDOUT_BATCH):
        yield _tensors(dataset, rows[start : start + _HELDOUT_BATCH], 0)


def _tensors(dataset: SampleDataset, rows: npt.NDArray[np.int64], epoch: int) -> Tensors:
    batch = make_batch(dataset, rows, epoch, seed=0)
    return {name: torch.from_numpy(array) for name, array in without_unused_slots(batch).items()}
