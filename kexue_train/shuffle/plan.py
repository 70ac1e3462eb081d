"""Arithmetic of the shuffle: how inputs are cut, how many shards and buckets, how much memory and disk. No I/O.

Letters: S shards, each of ``buckets_per_shard`` buckets; bucket b of B holds the keys in [b, b + 1) * 2**64 / B.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from kexue_train.corpus.inputs import Source

KEY_SPACE = 1 << 64
_UNPACKED_BYTES = {"gzip": 3.5, "zstd": 3.5, "bz2": 4.0, "xz": 5.0, "lz4": 2.0}
_UNPACKED_PARQUET = 3.0
_MAX_BUCKETS = 4096  # more make the pieces in the spill files too small to read well
_MIN_RANGE_BYTES, _MAX_RANGE_BYTES = 8 * 2**20, 256 * 2**20
_INTERPRETER_BYTES = 120 * 10**6


@dataclass(frozen=True, slots=True)
class InputRange:
    """What one scatter task reads: the records of a file that begin in ``[start, end)``."""

    file_index: int
    start: int
    end: int | None
    """None: to the end of the file."""
    bytes: int
    """Share of the file's size, for the progress display."""


@dataclass(frozen=True, slots=True)
class ShufflePlan:
    """How the work is cut. Any plan gives the same result; a resumed run keeps the plan it began with."""

    ranges: tuple[InputRange, ...]
    num_shards: int
    buckets_per_shard: int

    @property
    def num_buckets(self) -> int:
        """B."""
        return self.num_shards * self.buckets_per_shard

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        ranges = tuple(InputRange(**entry) for entry in values["ranges"])
        return cls(ranges, values["num_shards"], values["buckets_per_shard"])


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What one worker may use."""

    block_bytes: int
    """How much input a scatter task reads at a time."""
    bucket_bytes: int
    """How much text a gather task holds at a time."""


def plan_shuffle(sources: Sequence[Source], num_shards: int, bucket_bytes: int) -> ShufflePlan:
    """Cut the inputs into ranges and the shards into buckets that fit into ``bucket_bytes``."""
    shard_bytes = estimate_text_bytes(sources) / num_shards
    wanted = -(-int(shard_bytes * 1.2) // bucket_bytes)  # a little more, since buckets vary in size
    buckets_per_shard = max(1, min(wanted, max(1, _MAX_BUCKETS // num_shards)))
    return ShufflePlan(cut_ranges(sources), num_shards, buckets_per_shard)


def cut_ranges(sources: Sequence[Source]) -> tuple[InputRange, ...]:
    """Cut files that can be split into ranges of about equal size, enough of them for many workers."""
    total = sum(source.bytes for source in sources)
    step = min(max(total // 64, _MIN_RANGE_BYTES), _MAX_RANGE_BYTES)
    ranges = []
    for index, source in enumerate(sources):
        if not source.is_splittable or source.bytes <= step:
            # Without an end, so that bytes appended since then are read and noticed rather than cut off.
            ranges.append(InputRange(index, 0, None, source.bytes))
            continue
        pieces = -(-source.bytes // step)
        edges = [source.bytes * i // pieces for i in range(pieces + 1)]
        ranges += [InputRange(index, low, high, high - low) for low, high in itertools.pairwise(edges)]
    return tuple(ranges)


def count_shards(sources: Sequence[Source], shard_bytes: int) -> int:
    """Shards of about ``shard_bytes``, from the sizes of the files alone."""
    return max(1, round(estimate_text_bytes(sources) / shard_bytes))


def estimate_text_bytes(sources: Sequence[Source]) -> int:
    """About how much text the files hold, by usual rates of compression."""
    return int(sum(source.bytes * _unpacked(source) for source in sources))


def estimate_disk_bytes(sources: Sequence[Source]) -> int:
    """Free disk that a shuffle needs at its peak: the spill (compressed), the shards, and some room."""
    return int(1.8 * estimate_text_bytes(sources)) + 20 * 10**6


def split_memory(memory_bytes: int, num_workers: int) -> MemoryBudget:
    """Share ``memory_bytes`` among workers; small budgets work too, only slower.

    The divisors are what one block or bucket costs at its peak: read, decoded, taken in order and written.
    """
    # With one worker the calling process does the work; else it only waits.
    processes = 1 if num_workers == 1 else num_workers + 1
    share = max(memory_bytes - processes * _INTERPRETER_BYTES, 0) // num_workers
    return MemoryBudget(
        block_bytes=min(max(share // 8, 2**18), 32 * 2**20), bucket_bytes=min(max(share // 5, 2**20), 2**30)
    )


def bucket_bounds(num_buckets: int) -> list[int]:
    """B + 1 numbers: ``bounds[b] <= k < bounds[b + 1]`` exactly when ``k * B // 2**64 == b``, for any 64-bit key k."""
    return [-(-bucket * KEY_SPACE // num_buckets) for bucket in range(num_buckets + 1)]


def _unpacked(source: Source) -> float:
    if source.compression:
        return _UNPACKED_BYTES[source.compression]
    return _UNPACKED_PARQUET if source.format == "parquet" else 1.0
