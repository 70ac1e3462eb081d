"""The epoch of every row that a step reads, by the definition of an epoch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kexue_train.batches.order import training_rows
from kexue_train.foundation.artifacts import Manifest


def epochs_of_step(
    manifest_or_total_rows: Manifest | int, global_batch_size: int, step: int, *, rows_before: int = 0
) -> npt.NDArray[np.int64]:
    """Return the epoch, from 0, of every row of ``rows_of_step``."""
    positions = rows_before + np.arange(step * global_batch_size, (step + 1) * global_batch_size)
    return positions // training_rows(manifest_or_total_rows)[1]
