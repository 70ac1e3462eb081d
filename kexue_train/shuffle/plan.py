"""Arithmetic of the shuffle: how inputs are cut, how many shards and buckets, how much memory and disk. No I/O.

Letters: S shards, each of ``buckets_per_shard`` buckets, B buckets in all. Tasks, and so the inputs' ranges, depend on
the inputs alone; memory and workers only change how many buckets a shard is gathered in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from kexue_train.corpus.formats import COMPRESSIONS, FORMATS
from kexue_train.corpus.inputs import Source

_SPILL_RATE, _UNCOMPRESSED_RATE = 0.75, 1.05
"""Bytes of spill for a byte of text, with keys and lengths; of prose compressed 0.6 to 0.75."""
_MAX_BUCKETS = 4096
"""Most buckets and most scatter tasks, unless shards or files ask for more. A spill piece has corpus / (4096 · 4096)
bytes at least, 600 kB at 10 TB, so that reading pieces stays reading, not seeking."""
_MIN_RANGE_BYTES, _MAX_RANGE_BYTES = 2**20, 256 * 2**20
_ALONE_BYTES, _PROCESS_BYTES = 140 * 10**6, 105 * 10**6
"""What a process takes before it works: alone, and as one of several, which share the pages of their libraries."""
_KEPT_BYTES = 50 * 10**6
"""What a worker's allocators keep of the first pass in the second."""
_READER_SHARE = 0.33
"""Of what a worker has to work with, for what a reader cannot read in smaller parts."""
_SMALLEST_SHARE = 60 * 10**6
"""Less than this is not worth a worker process of its own."""


@dataclass(frozen=True, slots=True)
class InputRange:
    """Records of a file that begin in the units ``[start, end)``: bytes, row groups... (``Source.units``)."""

    file_index: int
    start: int
    end: int | None
    """None: to the end of the file."""
    bytes: int
    """Share of the file's size, for the progress display."""


@dataclass(frozen=True, slots=True)
class ShufflePlan:
    """How the work is cut. Any plan gives the same result; a resumed run keeps the plan it began with."""

    tasks: tuple[tuple[InputRange, ...], ...]
    """What each scatter task reads."""
    num_shards: int
    buckets_per_shard: int

    @property
    def num_buckets(self) -> int:
        """B."""
        return self.num_shards * self.buckets_per_shard

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        tasks = tuple(tuple(InputRange(**entry) for entry in task) for task in values["tasks"])
        return cls(tasks, values["num_shards"], values["buckets_per_shard"])


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What the workers of one machine may use."""

    workers: int
    """How many tasks may run at once."""
    task_bytes: int
    """All that one task may use."""
    block_bytes: int
    """How much input a scatter task reads at a time."""
    reader_bytes: int
    """How much a scatter task may hold of what cannot be read in smaller parts; see ``ReadOptions.memory_bytes``."""
    buffer_bytes: int
    """How many bytes of rows a scatter task collects before it writes them."""
    bucket_bytes: int
    """How many bytes of rows a gather task holds at a time."""


def plan_shuffle(sources: Sequence[Source], num_shards: int, bucket_bytes: int) -> ShufflePlan:
    """Group the inputs into tasks and cut the shards into buckets that fit into ``bucket_bytes``."""
    shard_bytes = estimate_text_bytes(sources) / num_shards
    wanted = -(-int(shard_bytes * 1.3) // bucket_bytes)  # some more: buckets vary, and rows cost memory
    buckets_per_shard = max(1, min(wanted, max(1, _MAX_BUCKETS // num_shards)))
    return ShufflePlan(tuple(group_ranges(sources)), num_shards, buckets_per_shard)


def group_ranges(sources: Sequence[Source]) -> Iterator[tuple[InputRange, ...]]:
    """Yield the ranges of one task each: about equal in bytes; small files go together, those of one source."""
    step = _range_bytes(sources)
    group: list[InputRange] = []
    held = 0
    for entry in cut_ranges(sources):
        if group and (held + entry.bytes > step or not _together(sources, group[0], entry)):
            yield tuple(group)
            group, held = [], 0
        group.append(entry)
        held += entry.bytes
    yield tuple(group)


def _together(sources: Sequence[Source], first: InputRange, entry: InputRange) -> bool:
    return sources[first.file_index].named is sources[entry.file_index].named


def cut_ranges(sources: Sequence[Source]) -> Iterator[InputRange]:
    """Cut files that can be cut into ranges of about equal size."""
    step = _range_bytes(sources)
    for index, source in enumerate(sources):
        pieces = min(-(-source.bytes // step), source.units)
        if pieces <= 1:
            # Without an end, so that what was appended since then is read and noticed rather than cut off.
            yield InputRange(index, 0, None, source.bytes)
            continue
        edges = [source.units * i // pieces for i in range(pieces + 1)]
        for low, high in itertools.pairwise(edges):
            yield InputRange(index, low, high, source.bytes * high // source.units - source.bytes * low // source.units)


def count_shards(sources: Sequence[Source], shard_bytes: int) -> int:
    """Return the number of shards of about ``shard_bytes``, from the sizes of the files alone."""
    return max(1, round(estimate_text_bytes(sources) / shard_bytes))


def estimate_text_bytes(sources: Sequence[Source]) -> int:
    """Estimate how much text the files give, by usual rates of compression."""
    return int(sum(source.bytes * _unpacked(source) * source.weight for source in sources))


def estimate_disk_bytes(sources: Sequence[Source], *, compress: bool, between_rate: float = 0.0) -> int:
    """Estimate the free disk that a shuffle needs at its peak: all of the spill and the shards, and some room.

    ``between_rate`` is what lies there for a byte of text between the passes, and is gone before the shards come.
    """
    spill_rate = _SPILL_RATE if compress else _UNCOMPRESSED_RATE
    return int((max(1.0, between_rate) + spill_rate) * estimate_text_bytes(sources)) + 20 * 10**6


def split_memory(memory_bytes: int, workers: int) -> MemoryBudget:
    """Share a machine's ``memory_bytes`` among as many of ``workers`` as are worth it.

    The fractions leave room for what a block, a flush or a bucket costs at its peak beside itself: parsed texts, their
    order, what is compressed, what is written.
    """
    while workers > 1 and _share(memory_bytes, workers) < _SMALLEST_SHARE:
        workers -= 1
    share = _share(memory_bytes, workers)
    return MemoryBudget(
        workers=workers,
        task_bytes=share + _PROCESS_BYTES,
        block_bytes=min(max(share // 24, 2**18), 8 * 2**20),
        reader_bytes=max(int(_READER_SHARE * share), 2**24),
        buffer_bytes=min(max(int(0.33 * share), 2**20), 2**30),
        bucket_bytes=min(max(int(0.55 * share) - _KEPT_BYTES, int(0.27 * share), 2**20), 2**31),
    )


def memory_for_reader(reader_bytes: int, workers: int) -> int:
    """Return the memory of a machine with which ``split_memory`` gives each of ``workers`` so much for a reader."""
    return math.ceil(reader_bytes / _READER_SHARE) * workers + _taken(workers)


def _share(memory_bytes: int, workers: int) -> int:
    return max(memory_bytes - _taken(workers), 0) // workers


def _taken(workers: int) -> int:
    # One worker is the calling process itself; else that only waits.
    return _ALONE_BYTES if workers == 1 else (workers + 1) * _PROCESS_BYTES


def _range_bytes(sources: Sequence[Source]) -> int:
    total = sum(source.bytes for source in sources)
    return max(min(max(total // 64, _MIN_RANGE_BYTES), _MAX_RANGE_BYTES), -(-total // _MAX_BUCKETS))


def _unpacked(source: Source) -> float:
    return COMPRESSIONS[source.compression].expansion if source.compression else FORMATS[source.format].expansion
