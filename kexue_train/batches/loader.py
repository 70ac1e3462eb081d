"""Micro-batches of one rank, made ahead of the training by a thread or by processes, always in the order of the steps.

Micro-batch m is a pure function of m, so it does not matter who makes it: process m mod n does, and the answers are
taken in that order. A lost process is replaced and its micro-batch made again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, cycle, islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from kexue_train.batches.collate import PUBLISHED_RATES, Batch, make_batch
from kexue_train.batches.labelled import Arrays
from kexue_train.batches.mixed import MixedDataset, TrainingData, open_folders
from kexue_train.executor.worker_process import WorkerProcess
from kexue_train.foundation.errors import ResourceError
from kexue_train.samples.mlm import MaskingRates

_AHEAD = 4  # micro-batches kept ready
_ATTEMPTS = 3
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which rows are in which micro-batch of a rank, and how they are masked.

    Micro-batch j of rank r of step t holds ``micro_batch_size`` rows of the step's ``global_batch_size`` from number
    ``(j * world_size + r) * micro_batch_size`` on, so the rows of a step are the same on any number of ranks. Before
    step 0 ``rows_before`` rows were read.

    Raises:
        ValueError: If the batch sizes do not multiply out, or ``rank`` is not in ``range(world_size)``.
    """

    seed: int
    rank: int
    world_size: int
    micro_batch_size: int
    accumulation_steps: int
    global_batch_size: int
    rows_before: int = 0
    rates: MaskingRates = PUBLISHED_RATES

    def __post_init__(self) -> None:
        rows = self.micro_batch_size * self.accumulation_steps * self.world_size
        if rows != self.global_batch_size or not 0 <= self.rank < self.world_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} must be micro_batch_size={self.micro_batch_size} * "
                f"accumulation_steps={self.accumulation_steps} * world_size={self.world_size}, and rank={self.rank} "
                "below world_size"
            )

    def make(self, dataset: TrainingData, number: int) -> Batch | Arrays:
        """Micro-batch ``number`` of this rank, counted from step 0 on."""
        step, j = divmod(number, self.accumulation_steps)
        in_step = (j * self.world_size + self.rank) * self.micro_batch_size
        first = self.rows_before + step * self.global_batch_size + in_step
        if isinstance(dataset, MixedDataset):
            size = self.micro_batch_size
            return dataset.make_batch(first // size, size, seed=self.seed, rates=self.rates)
        rows, epochs = dataset.rows_at(np.arange(first, first + self.micro_batch_size), self.seed)
        return make_batch(dataset, rows, epochs, seed=self.seed, rates=self.rates)


def iter_batches(
    dataset: TrainingData, plan: Plan, *, start_step: int, num_processes: int = 0
) -> Generator[Batch | Arrays, None, None]:
    """Yield the micro-batches of a rank from ``start_step`` on, without end, ``accumulation_steps`` of them per step.

    Closing the generator ends the processes; they end with this process too, however it ends. What goes wrong in them
    is raised here.

    Args:
        dataset: The samples.
        plan: Whose micro-batches.
        start_step: First step.
        num_processes: Processes that make them; each has one in the making or ready. 0: made here, when asked for.

    Raises:
        ResourceError: If processes are lost again and again.
    """
    numbers = count(start_step * plan.accumulation_steps)
    if num_processes == 0:
        for number in numbers:
            yield plan.make(dataset, number)
    makers: list[_Maker] = []
    try:
        for number in islice(numbers, num_processes):
            makers.append(_Maker(dataset, plan))
            makers[-1].ask(number)
        for maker in cycle(makers):
            batch = maker.answer()
            maker.ask(next(numbers))
            yield batch
    finally:
        for maker in makers:
            maker.close()


def read_ahead(batches: Generator[_T, None, None]) -> Generator[_T, None, None]:
    """Yield the values of ``batches``, a few of them made ahead in a thread; closing this closes ``batches``."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="kexue-batches")
    ready: deque[Future[_T]] = deque()
    try:
        while True:
            while len(ready) <= _AHEAD:
                ready.append(pool.submit(next, batches))
            yield ready.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        batches.close()


class _Maker:
    """A process that makes micro-batches, another one in its place when it is lost."""

    def __init__(self, dataset: TrainingData, plan: Plan) -> None:
        self._weights = tuple(dataset.weights.items())
        self._plan = plan
        self._worker = WorkerProcess()

    def ask(self, number: int) -> None:
        self._number = number
        if not self._worker.is_alive():  # it ends when nothing is asked of it for some seconds, as in a validation
            self._replace()
        self._worker.give(number, _make, (self._weights, self._plan, number), None)

    def answer(self) -> Batch | Arrays:
        for _ in range(_ATTEMPTS):
            _, answer = self._worker.take()
            if answer is not None:
                batch: Batch | Arrays = answer.result()
                return batch
            ending = self._worker.ending()
            self._replace()
            self.ask(self._number)
        raise ResourceError(
            f"a process that loads the samples was lost {_ATTEMPTS} times, most likely for lack of memory (the last "
            f"one ended {ending}); use fewer train.workers.num_loader_workers"
        )

    def close(self) -> None:
        self._worker.kill()

    def _replace(self) -> None:
        self._worker.kill()
        self._worker = WorkerProcess()


def _make(item: tuple[tuple[tuple[Path, float], ...], Plan, int]) -> Batch | Arrays:
    weights, plan, number = item
    return plan.make(_open(weights), number)


@lru_cache(maxsize=1)
def _open(weights: tuple[tuple[Path, float], ...]) -> TrainingData:
    return open_folders(dict(weights))
