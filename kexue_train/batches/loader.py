"""Micro-batches of one rank, made ahead of the training by one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count

import numpy as np
import numpy.typing as npt

from kexue_train.batches.collate import Batch, make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.order import epochs_of_step, rows_of_step

_Make = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], Batch]
_AHEAD = 4  # micro-batches kept ready


def iter_batches(
    dataset: SampleDataset,
    *,
    seed: int,
    start_step: int,
    rank: int,
    world_size: int,
    micro_batch_size: int,
    accumulation_steps: int,
    global_batch_size: int,
    mask_probability: float = 0.12,
    keep_probability: float = 0.015,
    random_probability: float = 0.015,
) -> Generator[Batch, None, None]:
    """Yield the micro-batches of ``rank`` from ``start_step`` on, without end; ``accumulation_steps`` of them per step.

    Micro-batch j of rank r of step t holds ``micro_batch_size`` rows of ``rows_of_step(t)`` from number
    ``(j * world_size + r) * micro_batch_size`` on, so the rows of a step are the same on any number of ranks.
    Closing the generator ends its thread; an error in the thread is raised here.

    Raises:
        ValueError: If the batch sizes do not multiply out, or ``rank`` is not in ``range(world_size)``.
    """
    if micro_batch_size * accumulation_steps * world_size != global_batch_size or not 0 <= rank < world_size:
        raise ValueError(
            f"global_batch_size={global_batch_size} must be micro_batch_size={micro_batch_size} * "
            f"accumulation_steps={accumulation_steps} * world_size={world_size}, and rank={rank} below world_size"
        )

    def make(rows: npt.NDArray[np.int64], epochs: npt.NDArray[np.int64]) -> Batch:
        return make_batch(
            dataset,
            rows,
            epochs,
            seed=seed,
            mask_probability=mask_probability,
            keep_probability=keep_probability,
            random_probability=random_probability,
        )

    def plan() -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        for step in count(start_step):
            rows = rows_of_step(dataset.manifest, seed, global_batch_size, step)
            epochs = epochs_of_step(dataset.manifest, global_batch_size, step)
            for j in range(accumulation_steps):
                first = (j * world_size + rank) * micro_batch_size
                part = slice(first, first + micro_batch_size)
                yield rows[part], epochs[part]

    return _prefetch(plan(), make)


def _prefetch(
    plan: Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]], make: _Make
) -> Generator[Batch, None, None]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="kexue-batches")
    ready: deque[Future[Batch]] = deque()
    try:
        for item in plan:
            ready.append(pool.submit(make, *item))
            if len(ready) > _AHEAD:
                yield ready.popleft().result()
        while ready:
            yield ready.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
