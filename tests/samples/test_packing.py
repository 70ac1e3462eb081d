from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples.rows import pack, permute_rows

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


def fewest_rows(lengths: list[int], seq_len: int) -> int:
    """The optimum, by trying every way to place each sequence."""

    def place(left: list[int], rooms: tuple[int, ...]) -> int:
        if not left:
            return len(rooms)
        fits = {rooms.index(room) for room in rooms if room >= left[0]}
        used = [place(left[1:], (*rooms[:i], rooms[i] - left[0], *rooms[i + 1 :])) for i in fits]
        return min([*used, place(left[1:], (*rooms, seq_len - left[0]))])

    return place(lengths, ())


@given(st.lists(st.integers(1, 20), max_size=7))
def test_few_sequences_take_hardly_more_rows_than_the_best_packing(lengths: list[int]) -> None:
    _, num_rows = pack(np.array(lengths, np.int64), 20)
    # The bound of first-fit and best-fit decreasing (Johnson 1973; Dósa 2007).
    assert num_rows <= fewest_rows(lengths, 20) * 11 / 9 + 6 / 9


@given(st.lists(st.lists(st.integers(1, 63), max_size=6), max_size=60))
def test_rows_cut_to_pieces_are_packed_into_hardly_more_rows(cuts: list[list[int]]) -> None:
    lengths = [int(length) for row in cuts for length in np.diff([0, *sorted(set(row)), 64])]
    rows, num_rows = pack(np.array(lengths, np.int64), 64)
    used = np.bincount(rows, lengths, num_rows)
    assert used.sum() == sum(lengths) == 64 * len(cuts)
    assert (used <= 64).all()
    assert num_rows <= len(cuts) * 11 / 9 + 6 / 9


@given(st.integers(0, 200), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_rows_are_permuted_by_seed_and_stream_alone(num_rows: int, seed: int, stream: int) -> None:
    rows = np.arange(num_rows)
    permuted = permute_rows(rows, num_rows, seed=seed, stream=stream)
    assert sorted(permuted.tolist()) == rows.tolist()
    np.testing.assert_array_equal(permuted, permute_rows(rows, num_rows, seed=seed, stream=stream))


def test_every_order_of_rows_is_as_likely() -> None:
    counts = Counter(tuple(permute_rows(np.arange(4), 4, seed=seed, stream=0).tolist()) for seed in range(4800))
    assert len(counts) == 24
    # Chi-square with 23 degrees of freedom: mean 23, standard deviation 6.8.
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 23 + 4 * 6.8


def test_streams_permute_differently() -> None:
    first, second = (permute_rows(np.arange(50), 50, seed=1, stream=stream) for stream in (0, 1))
    assert (first != second).any()
    assert (first != np.arange(50)).any()
