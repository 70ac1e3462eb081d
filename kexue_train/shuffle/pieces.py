"""Which record batches of which spill files make up each shard."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kexue_train.shuffle.plan import ShufflePlan
from kexue_train.shuffle.scatter import ScatterResult

Pieces = npt.NDArray[np.int32]
"""Shape (n, 3), sorted: (bucket, scatter task, record batch in its spill file)."""


def group_pieces(scattered: Sequence[ScatterResult], plan: ShufflePlan) -> tuple[list[Pieces], list[int]]:
    """The pieces of each shard, and how many bytes of text they hold."""
    tables = [
        np.column_stack([buckets, np.full(len(buckets), task), np.arange(len(buckets)), sizes])
        for task, result in enumerate(scattered)
        if result.batches
        for buckets, sizes in [np.array(result.batches, np.int64).T]
    ]
    table = np.concatenate(tables) if tables else np.zeros((0, 4), np.int64)
    table = table[np.lexsort((table[:, 2], table[:, 1], table[:, 0]))]
    edges = np.searchsorted(table[:, 0], np.arange(plan.num_shards + 1) * plan.buckets_per_shard)
    shards = [table[low:high] for low, high in itertools.pairwise(edges)]
    return [shard[:, :3].astype(np.int32) for shard in shards], [int(shard[:, 3].sum()) for shard in shards]


def count_sources(scattered: Sequence[ScatterResult], plan: ShufflePlan, num_files: int) -> npt.NDArray[np.int64]:
    """Accepted records by input file and shard (before duplicates are dropped): shape (files, shards)."""
    counts = np.zeros((num_files, plan.num_shards), np.int64)
    for entry, result in zip(plan.ranges, scattered, strict=True):
        for bucket, rows in result.rows_per_bucket.items():
            counts[entry.file_index, bucket // plan.buckets_per_shard] += rows
    return counts
