from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples.packing import pack, permute_rows

LENGTHS = st.lists(st.integers(1, 32), max_size=80)


def best_fit_by_hand(lengths: list[int], seq_len: int) -> list[int]:
    """Room left in every row, sorted."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else seq_len) - length)
    return sorted(rooms)


@given(LENGTHS)
def test_rows_are_those_of_best_fit(lengths: list[int]) -> None:
    rows, num_rows = pack(np.array(lengths, np.int64), 32)
    used = np.bincount(rows, lengths, num_rows) if lengths else np.zeros(0)
    assert sorted((32 - used).astype(int).tolist()) == best_fit_by_hand(lengths, 32)


@given(st.integers(0, 200), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_rows_are_permuted_by_seed_and_stream_alone(num_rows: int, seed: int, stream: int) -> None:
    rows = np.arange(num_rows)
    permuted = permute_rows(rows, num_rows, seed=seed, stream=stream)
    assert sorted(permuted.tolist()) == rows.tolist()
    np.testing.assert_array_equal(permuted, permute_rows(rows, num_rows, seed=seed, stream=stream))


def test_streams_permute_differently() -> None:
    first, second = (permute_rows(np.arange(50), 50, seed=1, stream=stream) for stream in (0, 1))
    assert (first != second).any()
    assert (first != np.arange(50)).any()
