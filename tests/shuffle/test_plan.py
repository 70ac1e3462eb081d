from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.inputs import Source
from kexue_train.shuffle.plan import (
    ShufflePlan,
    bucket_bounds,
    count_shards,
    cut_ranges,
    estimate_disk_bytes,
    plan_shuffle,
    split_memory,
)

GB = 10**9


def source(num_bytes: int, compression: str | None = None, format: str = "jsonl") -> Source:
    return Source(f"/data/a.{format}", format, compression, num_bytes, 0)


@given(st.integers(1, 500), st.integers(0, 2**64 - 1))
def test_bucket_bounds_are_the_floor_of_key_times_buckets(num_buckets, key):
    bounds = bucket_bounds(num_buckets)
    bucket = key * num_buckets >> 64
    assert (bounds[0], bounds[-1]) == (0, 2**64)
    assert bounds[bucket] <= key < bounds[bucket + 1]


@given(st.integers(1, 50), st.integers(1, 20))
def test_shard_bounds_are_among_the_bucket_bounds(num_shards, buckets_per_shard):
    assert bucket_bounds(num_shards * buckets_per_shard)[::buckets_per_shard] == bucket_bounds(num_shards)


@given(st.lists(st.integers(0, 3 * GB), min_size=1, max_size=5))
def test_ranges_cover_every_file_once(sizes):
    sources = [source(size) for size in sizes]
    for index, size in enumerate(sizes):
        ranges = [entry for entry in cut_ranges(sources) if entry.file_index == index]
        assert ranges[0].start == 0
        assert all(one.end == next_one.start for one, next_one in itertools.pairwise(ranges))
        assert ranges[-1].end in (None, size)
        assert sum(entry.bytes for entry in ranges) == size


def test_compressed_and_column_files_are_not_cut():
    assert len(cut_ranges([source(GB, "gzip"), source(GB, format="parquet"), source(GB, format="arrow")])) == 3
    assert len(cut_ranges([source(GB)])) > 8


def test_less_memory_means_more_buckets_and_the_same_shards():
    plans = [plan_shuffle([source(10 * GB)], 40, bucket_bytes) for bucket_bytes in (GB, 10**8, 10**7)]
    assert [plan.num_shards for plan in plans] == [40, 40, 40]
    assert [plan.buckets_per_shard for plan in plans] == [1, 3, 30]


def test_the_number_of_shards_follows_the_size_of_the_text():
    assert count_shards([source(1000)], 256 * 10**6) == 1
    assert count_shards([source(GB)], 10**8) == 10
    assert count_shards([source(GB, "gzip")], 10**8) == 35


def test_disk_for_spill_and_shards_is_asked_for():
    assert 1.5 * GB < estimate_disk_bytes([source(GB)]) < 2.2 * GB


@pytest.mark.parametrize("memory", [1, 50 * 10**6, GB, 100 * GB])
@pytest.mark.parametrize("workers", [1, 2, 64])
def test_the_budgets_of_all_workers_together_keep_to_the_memory(memory, workers):
    budget = split_memory(memory, workers)
    smallest = (2**18, 2**20)
    assert workers * 8 * budget.block_bytes <= memory or budget.block_bytes == smallest[0]
    assert workers * 5 * budget.bucket_bytes <= memory or budget.bucket_bytes == smallest[1]


def test_a_plan_survives_writing_and_reading():
    plan = plan_shuffle([source(GB), source(5, "gzip")], 3, 10**8)
    assert ShufflePlan.from_json(plan.to_json()) == plan
