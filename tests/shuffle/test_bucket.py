from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kexue_train.shuffle.bucket import iter_ordered
from kexue_train.shuffle.keys import bucket_bounds, bucket_of
from kexue_train.shuffle.rows import Rows


@dataclass
class InMemory:
    """The pieces of a bucket."""

    parts: list[Rows]

    def sizes(self):
        return sum(len(part) for part in self.parts), sum(part.bytes for part in self.parts)

    def load(self, buffer):
        for part in self.parts:
            buffer.add(part)

    def frames(self):
        return iter(self.parts)


def make_parts(rows, size) -> InMemory:
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    return InMemory(
        [
            Rows(
                np.array([key for key, _ in part], np.uint64),
                pa.array([text for _, text in part], pa.large_binary()),
                origins=np.full(len(part), number, np.uint32),
            )
            for number, part in enumerate(parts)
        ]
    )


def read(pieces, limit, scratch, **options):
    ordered = list(iter_ordered(pieces, (0, 2**64), limit_bytes=limit, scratch=scratch, **options))
    texts = [text for part in ordered for text in part.rows.texts.to_pylist()]
    keys = [key for part in ordered for key in part.rows.keys.tolist()]
    return keys, texts, [text for part in ordered for text in part.duplicates.texts.to_pylist()]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.binary(max_size=30)), min_size=1, max_size=60, unique=True),
    st.integers(1, 20),
    st.sampled_from([1, 300, 10**6]),
)
def test_any_limit_gives_the_same_order_and_leaves_no_file(tmp_path, rows, size, limit):
    keys, texts, _ = read(make_parts(rows, size), limit, tmp_path, drop_duplicates=False)
    assert keys == sorted(key for key, _ in rows)
    assert Counter(zip(keys, texts, strict=True)) == Counter(rows)
    assert not list(tmp_path.iterdir())


def test_a_large_bucket_of_one_key_is_read_whole(tmp_path):
    rows = [(5, b"copy")] * 50 + [(5, b"other")]
    keys, texts, left_out = read(make_parts(rows, 7), 10, tmp_path, drop_duplicates=True)
    assert (keys, sorted(texts), left_out) == ([5, 5], [b"copy", b"other"], [b"copy"] * 49)


def test_origins_survive_the_cutting(tmp_path):
    rows = [(i * 2**58, b"text %d" % i) for i in range(40)]
    parts = make_parts(rows, 10)
    ordered = list(iter_ordered(parts, (0, 2**64), limit_bytes=100, scratch=tmp_path, drop_duplicates=False))
    assert np.concatenate([part.rows.origins for part in ordered]).tolist() == [i // 10 for i in range(40)]


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_the_bounds_of_a_bucket_hold_its_keys(num_buckets, key):
    bucket = int(bucket_of(np.array([key], np.uint64), num_buckets)[0])
    low, high = bucket_bounds(bucket, num_buckets)
    assert low <= key < high
    assert (bucket_bounds(0, num_buckets)[0], bucket_bounds(num_buckets - 1, num_buckets)[1]) == (0, 2**64)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**64 - 1))
def test_the_buckets_of_a_shard_are_its_parts(num_shards, buckets_per_shard, key):
    keys = np.array([key], np.uint64)
    assert bucket_of(keys, num_shards * buckets_per_shard) // buckets_per_shard == bucket_of(keys, num_shards)
