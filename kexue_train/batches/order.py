"""Which rows form the global batch of a step: a pure function, so no loader has a state to save.

Epoch 0 reads the training rows as they lie on disk (the corpus was shuffled before). Every later epoch is another
exact permutation of them, computed row by row: a Feistel network keyed by (seed, epoch) on the smallest power of four
that holds them, walked until it falls among them (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kexue_train.artifacts import Manifest
from kexue_train.counter_rng import Purpose, philox
from kexue_train.errors import ArtifactError

_ROUNDS = 8


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
            rows[here] = permute(places[here], num_rows, seed, epoch)
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


def permute(places: npt.NDArray[np.int64], num_rows: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Where a bijection of ``range(num_rows)`` keyed by (seed, epoch) sends each of ``places``; same shape, int64."""
    half_bits = max(1, (max(1, num_rows - 1).bit_length() + 1) // 2)
    result = _feistel(places.astype(np.uint64), half_bits, seed, epoch)
    # A bijection of the larger square, followed until it is back inside, is a bijection of what is inside.
    while (outside := np.flatnonzero(result >= num_rows)).size:
        result[outside] = _feistel(result[outside], half_bits, seed, epoch)
    return result.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], half_bits: int, seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for i in range(_ROUNDS):
        word = philox((right, i, epoch & 0xFFFFFFFF, epoch >> 32), (seed & 0xFFFFFFFF, int(Purpose.ORDER)))[0]
        left, right = right, left ^ (word & mask)
    return (left << shift) | right


def _positions(global_batch_size: int, step: int) -> npt.NDArray[np.int64]:
    if global_batch_size < 1 or step < 0:
        raise ValueError(f"global_batch_size={global_batch_size} must be at least 1 and step={step} at least 0")
    return np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64)
