"""Which rows form the global batch of a step: a pure function, so no loader has a state to save.

Epoch 0 reads the training rows as they lie on disk (the corpus was shuffled before). Every later epoch is another
exact permutation of them, computed row by row (``counter_rng.permute``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kexue_train.artifacts import Manifest
from kexue_train.counter_rng import Purpose, permute
from kexue_train.errors import ArtifactError


def rows_of_step(
    manifest_or_total_rows: Manifest | int, seed: int, global_batch_size: int, step: int
) -> npt.NDArray[np.int64]:
    """Row numbers of the global batch of ``step``: shape (global_batch_size,), int64.

    Args:
        manifest_or_total_rows: Of sample shards: its training rows ``[heldout_rows, rows)``; or n for rows ``[0, n)``.
        seed: The run's seed, ``0 <= seed < 2**32``.
        global_batch_size: Rows per step, at least 1.
        step: Step (optimizer update), from 0.

    Raises:
        ArtifactError: If there is no training row.
    """
    first, num_rows = training_rows(manifest_or_total_rows)
    epochs, places = np.divmod(_positions(global_batch_size, step), num_rows)
    rows = places.copy()
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        if epoch > 0:
            here = epochs == epoch
            rows[here] = permute(places[here], num_rows, seed, Purpose.ORDER, epoch)
    return rows + first


def epochs_of_step(manifest_or_total_rows: Manifest | int, global_batch_size: int, step: int) -> npt.NDArray[np.int64]:
    """The epoch, from 0, of every row of ``rows_of_step``: shape (global_batch_size,), int64, never falling."""
    _, num_rows = training_rows(manifest_or_total_rows)
    return _positions(global_batch_size, step) // num_rows


def training_rows(manifest_or_total_rows: Manifest | int) -> tuple[int, int]:
    """(first training row, number of training rows).

    Raises:
        ArtifactError: If there is no training row.
    """
    if isinstance(manifest_or_total_rows, Manifest):
        first = int(manifest_or_total_rows.statistics.get("heldout_rows", 0))
        num_rows = manifest_or_total_rows.rows - first
    else:
        first, num_rows = 0, manifest_or_total_rows
    if num_rows < 1:
        raise ArtifactError(
            f"the samples hold {first} held-out rows and {num_rows} rows to train on; at least one is needed: "
            "use a larger corpus or a smaller samples.heldout_fraction"
        )
    return first, num_rows


def _positions(global_batch_size: int, step: int) -> npt.NDArray[np.int64]:
    if global_batch_size < 1 or step < 0:
        raise ValueError(f"global_batch_size={global_batch_size} must be at least 1 and step={step} at least 0")
    return np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64)
