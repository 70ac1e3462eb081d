"""Which rows form the global batch of a step: a pure function, so no loader has a state to save.

Epoch 0 reads the training rows as they lie on disk (the corpus was shuffled before). Every later epoch is another
exact permutation of them, made so that the disk is read in pieces of a thousand rows and memory holds one group:

    rows, turned by a random number    r                      (so that the borders of the blocks differ every epoch)
    -> blocks of 1024 rows in random order (Feistel)          ... B7 | B2 | B9 | B4 | ...
    -> groups of 128 blocks, the rows of each in random order [ B7 B2 ... ] [ B9 B4 ... ] ...

So nothing has to be remembered, and what is worked out for a group is the same wherever one begins. Up to 131 072 rows
are one group: they are shuffled as a whole. Of more, the rows of a block stay in one group, among 127 other blocks that
were drawn from everywhere. That the block belongs together means nothing, since the corpus was shuffled before.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.artifacts import Manifest
from kexue_train.foundation.counter_rng import Purpose, permute, random_words
from kexue_train.foundation.errors import ArtifactError

BLOCK_ROWS = 1024
GROUP_ROWS = 128 * BLOCK_ROWS
"""A whole number of blocks; 150 MB of rows of 512 16-bit tokens."""
_Rows = npt.NDArray[np.int64]


def rows_of_step(
    manifest_or_total_rows: Manifest | int, seed: int, global_batch_size: int, step: int, *, rows_before: int = 0
) -> _Rows:
    """Row numbers of the global batch of ``step``: shape (global_batch_size,), int64.

    Args:
        manifest_or_total_rows: Manifest of sample shards, for its rows ``[heldout_rows, rows)``; or n, for ``[0, n)``.
        seed: The run's seed, ``0 <= seed < 2**32``.
        global_batch_size: Rows per step, at least 1.
        step: Step (optimizer update), from 0.
        rows_before: Rows that were read before step 0, in batches of any size.

    Raises:
        ArtifactError: If there is no training row.
    """
    first, num_rows = training_rows(manifest_or_total_rows)
    return first + rows_at(rows_before + positions_of_step(global_batch_size, step), num_rows, seed)[0]


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


def positions_of_step(global_batch_size: int, step: int) -> _Rows:
    """Return the positions of a step's rows in the stream of all rows of all epochs: (global_batch_size,), int64."""
    if global_batch_size < 1 or step < 0:
        raise ValueError(f"global_batch_size={global_batch_size} must be at least 1 and step={step} at least 0")
    return np.arange(step * global_batch_size, (step + 1) * global_batch_size, dtype=np.int64)


def rows_at(positions: _Rows, num_rows: int, seed: int, folder: int = 0) -> tuple[_Rows, _Rows]:
    """Return what ``positions`` (n,) of the endless stream of ``range(num_rows)`` read: rows and epochs, (n,) int64.

    Args:
        positions: From 0; epoch e is ``[e * num_rows, (e + 1) * num_rows)``.
        num_rows: At least 1.
        seed: The run's seed.
        folder: Number of the folder in a mixture; gives each orders of its own.
    """
    epochs, offsets = np.divmod(positions, num_rows)
    rows = offsets.copy()
    num_groups = -(-num_rows // GROUP_ROWS)
    groups = epochs * num_groups + offsets // GROUP_ROWS
    for epoch, group in (divmod(int(visit), num_groups) for visit in np.unique(groups)):
        if epoch > 0:
            here = groups == epoch * num_groups + group
            order = _rows_of_group(num_rows, group, epoch, seed, folder, BLOCK_ROWS, GROUP_ROWS)
            rows[here] = order[offsets[here] - group * GROUP_ROWS]
    return rows, epochs


@lru_cache(maxsize=16)
def _rows_of_group(
    num_rows: int, group: int, epoch: int, seed: int, folder: int, block_rows: int, group_rows: int
) -> _Rows:
    """Return the rows that positions ``[group * group_rows, ...)`` of the epoch read: at most ``group_rows``."""
    stream = folder << 32 | epoch
    first, last = group * group_rows, min((group + 1) * group_rows, num_rows)
    blocks = np.arange(first // block_rows, -(-last // block_rows))
    whole = blocks < num_rows // block_rows  # a last, shorter block stays where it is
    blocks[whole] = permute(blocks[whole], num_rows // block_rows, seed, Purpose.BLOCK_ORDER, stream)
    offsets = (blocks[:, None] * block_rows + np.arange(block_rows)).ravel()[: last - first]
    words = random_words(seed, Purpose.ORDER, stream, np.arange(first, last, dtype=np.uint64))[0]
    turn = int(random_words(seed, Purpose.ORDER, stream, num_rows)[0, 0]) * num_rows >> 64
    rows = (offsets[np.argsort(words, kind="stable")] + turn) % num_rows
    rows.flags.writeable = False
    return rows
