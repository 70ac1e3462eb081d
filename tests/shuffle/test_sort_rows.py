from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.shuffle.scatter import COPIES, SPILL_SCHEMA
from kexue_train.shuffle.sort_rows import iter_sorted

ROWS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**64 - 1), st.integers(0, 30)), max_size=40)


def batches_of(rows, size, copies=None):
    columns = [
        pa.array(["x" * length + f" {high} {low}" for high, low, length in rows], pa.large_string()),
        pa.array([high for high, _, _ in rows], pa.uint64()),
        pa.array([low for _, low, _ in rows], pa.uint64()),
    ]
    schema = SPILL_SCHEMA
    if copies is not None:
        columns, schema = [*columns, pa.array(copies, pa.uint64())], SPILL_SCHEMA.append(COPIES)
    batch = pa.record_batch(columns, schema=schema)
    return lambda: iter([batch.slice(start, size) for start in range(0, len(rows), size)])


def keys_of(tables):
    return [key for table in tables for key in zip(*(table.column(i).to_pylist() for i in (1, 2)), strict=True)]


@given(ROWS, st.integers(1, 9), st.integers(1, 2000), st.integers(0, 40), st.integers(0, 41))
def test_rows_of_the_key_range_come_sorted_whatever_the_memory(rows, size, limit, low, high):
    tables = list(iter_sorted(batches_of(rows, size), low, high, limit))
    assert keys_of(tables) == sorted((a, b) for a, b, _ in rows if low <= a < high)


@given(ROWS, st.integers(1, 9), st.integers(1, 2000))
def test_copies_become_one_row_that_counts_them_whatever_the_memory(rows, size, limit):
    rows = [(high, high % 3, 5) for high, _, _ in rows]
    tables = list(iter_sorted(batches_of(rows, size, copies=[2] * len(rows)), 0, 41, limit))
    assert keys_of(tables) == sorted({(a, b) for a, b, _ in rows})
    assert sum(sum(table.column("copies").to_pylist()) for table in tables) == 2 * len(rows)


def test_memory_is_bounded_by_the_limit_and_the_largest_row():
    rng = np.random.default_rng(0)
    rows = [(int(key), i, 100) for i, key in enumerate(rng.integers(0, 2**63, 5000))]
    tables = list(iter_sorted(batches_of(rows, 50), 0, 2**64, 20_000))
    assert max(table.nbytes for table in tables) < 60_000
    assert sum(table.num_rows for table in tables) == 5000
