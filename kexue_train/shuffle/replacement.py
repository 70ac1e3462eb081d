"""Draws with replacement: each of N draws is any of n lines, with equal chances and whatever the other draws are.

The lines are counted first. Then the draws are dealt to the ranges of the inputs, in each range to chunks of lines, and
in each chunk to lines, every time by a uniform whole number for each draw. So a line is drawn as often as N independent
draws from all n lines would have it, exactly, and only a chunk is held at a time. A line that is drawn c times goes on
as c copies with keys of their own, as one of weight c does; so the order of the N lines is uniform, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.executor import Executor
from kexue_train.foundation.counter_rng import Purpose, generator
from kexue_train.shuffle.plan import InputRange, MemoryBudget, group_ranges
from kexue_train.shuffle.rows import cut_evenly

Counts = npt.NDArray[np.int64]

_AMONG_RANGES, _IN_RANGE, _IN_CHUNK = 1, 2, 3
"""Keep the three steps apart: NumPy takes a seed as the same with a zero at its end."""
_CHUNK_ROWS = 2**16
_STEP_DRAWS = 2**20
_PIECE_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class DrawnRange:
    """The draws that fall on the lines of one range of the inputs."""

    seed: int
    number: int
    """Of the range among all, from 0."""
    rows: int
    draws: int

    def copies(self) -> CopyCounter:
        """Return what tells how often each line is drawn."""
        return CopyCounter(self)


class CopyCounter:
    """Tells of the lines of a range, one after the other, how often each is drawn."""

    def __init__(self, drawn: DrawnRange) -> None:
        self._drawn = drawn
        starts = np.arange(0, drawn.rows, _CHUNK_ROWS, dtype=np.int64)
        self._sizes = np.minimum(drawn.rows - starts, _CHUNK_ROWS)
        random = generator(drawn.seed, Purpose.REPLACEMENT, _IN_RANGE, drawn.number)
        self._draws = deal_draws(random, drawn.draws, self._sizes)
        self._chunk, self._rest = 0, np.zeros(0, np.int64)

    def take(self, num_rows: int) -> Counts:
        """Return how often each of the next ``num_rows`` lines is drawn: shape (num_rows,)."""
        parts = [self._rest]
        missing = num_rows - len(self._rest)
        while missing > 0:
            random = generator(self._drawn.seed, Purpose.REPLACEMENT, _IN_CHUNK, self._drawn.number, self._chunk)
            size = int(self._sizes[self._chunk])
            parts.append(deal_draws(random, int(self._draws[self._chunk]), np.ones(size, np.int64)))
            missing -= size
            self._chunk += 1
        counts = np.concatenate(parts)
        self._rest = counts[num_rows:]
        return counts[:num_rows]


def deal_draws(random: np.random.Generator, num_draws: int, sizes: Counts) -> Counts:
    """Return how many of ``num_draws`` draws from all rows fall on each of P parts of these sizes: shape (P,)."""
    edges = np.cumsum(sizes)
    counts = np.zeros(len(sizes), np.int64)
    for first in range(0, num_draws, _STEP_DRAWS):
        places = random.integers(0, edges[-1], min(_STEP_DRAWS, num_draws - first))
        counts += np.bincount(np.searchsorted(edges, places, side="right"), minlength=len(sizes))
    return counts


def repeat_rows(copies: Counts, lengths: Counts) -> Iterator[tuple[Counts, Counts]]:
    """Yield (row, number of the copy) for every copy of the rows of a block, some MB of text at a time.

    Args:
        copies: Shape (n,): how often each row is taken.
        lengths: Shape (n,): the bytes of each.
    """
    ends = np.cumsum(copies)
    for first in range(0, int(ends[-1]), _CHUNK_ROWS):
        places = np.arange(first, min(first + _CHUNK_ROWS, int(ends[-1])))
        rows = np.searchsorted(ends, places, side="right")
        numbers = places - (ends - copies)[rows]
        for start, stop in cut_evenly(lengths[rows], _PIECE_BYTES):
            yield rows[start:stop], numbers[start:stop]


def draw_ranges(
    seed: int,
    num_draws: int,
    sources: Sequence[Source],
    options: ReadOptions,
    header: int,
    executor: Executor,
    budget: MemoryBudget,
) -> list[list[DrawnRange]]:
    """Count the lines of the inputs and deal the draws to their ranges: for each scatter task those of its ranges.

    Args:
        seed: Of the shuffle.
        num_draws: N.
        sources: The inputs; they are read here, and again later.
        options: How they are read.
        header: So many first lines of each input are not drawn from.
        executor: Where they are read.
        budget: How many at a time.

    Raises:
        CorpusError: If a file cannot be read.
    """
    groups = list(group_ranges(sources))
    tasks = [
        CountTask(tuple((entry, sources[entry.file_index]) for entry in group), options, header) for group in groups
    ]
    counted = executor.map_unordered(count_lines, tasks, at_once=budget.workers, task_memory_bytes=budget.task_bytes)
    results = [counts for _, counts in sorted(counted)]
    sizes = np.array([size for counts in results for size in counts], np.int64)
    random = generator(seed, Purpose.REPLACEMENT, _AMONG_RANGES)
    draws = iter(deal_draws(random, num_draws if sizes.any() else 0, sizes).tolist())
    numbers = iter(range(len(sizes)))
    return [[DrawnRange(seed, next(numbers), size, next(draws)) for size in counts] for counts in results]


@dataclass(frozen=True, slots=True)
class CountTask:
    """What one call of ``count_lines`` needs; small, since it travels to a worker."""

    ranges: tuple[tuple[InputRange, Source], ...]
    options: ReadOptions
    header: int


def count_lines(task: CountTask) -> list[int]:
    """Return how many lines each range has, those of the header left out."""
    counts = []
    for entry, source in task.ranges:
        blocks = read_records(source, task.options, start=entry.start, end=entry.end)
        num_lines = sum(len(block.positions) for block in blocks)
        counts.append(num_lines if entry.start else max(num_lines - task.header, 0))
    return counts
