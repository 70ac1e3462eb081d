from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.inputs import Source
from kexue_train.shuffle.plan import (
    ShufflePlan,
    count_shards,
    cut_ranges,
    estimate_disk_bytes,
    group_ranges,
    plan_shuffle,
    split_memory,
)

GB = 10**9


def source(num_bytes: int, compression: str | None = None, units: int | None = None) -> Source:
    return Source("/data/a.jsonl", "jsonl", compression, num_bytes, 0, units=num_bytes if units is None else units)


@given(st.lists(st.tuples(st.integers(0, 3 * GB), st.sampled_from([None, 1, 7])), min_size=1, max_size=5))
def test_ranges_cover_every_file_once(files):
    sources = [source(size, units=units) for size, units in files]
    for index, entry in enumerate(sources):
        ranges = [found for found in cut_ranges(sources) if found.file_index == index]
        assert ranges[0].start == 0
        assert all(one.end == next_one.start for one, next_one in itertools.pairwise(ranges))
        assert ranges[-1].end in (None, entry.units)
        assert sum(found.bytes for found in ranges) == entry.bytes


def test_files_are_cut_only_where_they_can_be():
    pieces = [len(list(cut_ranges([source(GB, units=units)]))) for units in (1, 5, GB)]
    assert pieces == [1, 5, 64]


@given(st.lists(st.integers(0, 50 * 10**6), min_size=1, max_size=300))
def test_tasks_take_the_ranges_in_order_and_small_files_together(sizes):
    sources = [source(size, units=1) for size in sizes]
    groups = list(group_ranges(sources))
    assert [entry for group in groups for entry in group] == list(cut_ranges(sources))
    assert all(group for group in groups)
    assert len(groups) <= 2 * 64 + 2


def test_a_million_tiny_files_are_few_tasks():
    assert len(list(group_ranges([source(10**4, units=1)] * 10**5))) <= 70


@pytest.mark.parametrize("size", [500 * GB, 10_000 * GB])
def test_tasks_and_buckets_stay_few_however_large_the_corpus(size):
    plan = plan_shuffle([source(size)], count_shards([source(size)], max(256 * 10**6, size // 4000)), 500 * 10**6)
    assert len(plan.tasks) <= 4100
    assert plan.num_buckets <= 4100
    assert size / len(plan.tasks) / plan.num_buckets > 100_000  # bytes of a piece


def test_less_memory_means_more_buckets_and_the_same_shards():
    plans = [plan_shuffle([source(10 * GB)], 40, bucket_bytes) for bucket_bytes in (GB, 10**8, 10**7)]
    assert [plan.num_shards for plan in plans] == [40, 40, 40]
    assert [plan.buckets_per_shard for plan in plans] == [1, 4, 33]


def test_the_number_of_shards_follows_the_size_of_the_text():
    assert count_shards([source(1000)], 256 * 10**6) == 1
    assert count_shards([source(GB)], 10**8) == 10
    assert count_shards([source(GB, "gzip")], 10**8) == 35


def test_disk_for_spill_and_shards_is_asked_for():
    assert 1.5 * GB < estimate_disk_bytes([source(GB)], compress=True) < 1.9 * GB
    assert 2.0 * GB < estimate_disk_bytes([source(GB)], compress=False) < 2.2 * GB


@pytest.mark.parametrize("memory", [1, 50 * 10**6, 256 * 10**6, GB, 100 * GB])
@pytest.mark.parametrize("workers", [1, 2, 64])
def test_the_budgets_of_all_workers_together_keep_to_the_memory(memory, workers):
    budget = split_memory(memory, workers)
    assert 1 <= budget.workers <= workers
    whole = budget.workers * budget.task_bytes
    assert whole <= memory or (budget.workers, budget.buffer_bytes) == (1, 2**20)
    assert budget.block_bytes * 4 + budget.buffer_bytes <= budget.task_bytes
    assert budget.bucket_bytes <= budget.task_bytes


def test_little_memory_is_given_to_few_workers():
    assert [split_memory(memory * 10**6, 8).workers for memory in (1, 256, 512, 1000, 2000)] == [1, 1, 2, 5, 8]


def test_a_plan_survives_writing_and_reading():
    plan = plan_shuffle([source(GB), source(5, "gzip")], 3, 10**8)
    assert ShufflePlan.from_json(plan.to_json()) == plan
