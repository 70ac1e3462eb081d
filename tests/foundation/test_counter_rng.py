"""The counter-based generator against its published vectors, and the uses built on it."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.foundation.counter_rng import Purpose, generator, permute, philox, random_words, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: tuple[int, int, int, int], key: tuple[int, int], expected: str
) -> None:
    # Source: kat_vectors of Random123 1.14, lines "philox4x32 10".
    assert [f"{word:08x}" for word in philox(counter, key)[:, 0]] == expected.split()


def test_vectorised_philox_equals_plain_integer_arithmetic() -> None:
    def reference(x: list[int], key: tuple[int, int]) -> list[int]:
        k0, k1 = key
        for _ in range(10):
            high0, low0 = divmod(x[0] * 0xD2511F53, 2**32)
            high1, low1 = divmod(x[2] * 0xCD9E8D57, 2**32)
            x = [high1 ^ x[1] ^ k0, low1, high0 ^ x[3] ^ k1, low0]
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        return x

    counters = np.random.default_rng(0).integers(0, 2**32, (4, 50), dtype=np.uint64)
    words = philox(tuple(counters), (123, 456))
    assert [list(map(int, column)) for column in words.T] == [
        reference(list(map(int, c)), (123, 456)) for c in counters.T
    ]


def test_counters_may_broadcast_to_any_shape() -> None:
    rows, columns = np.arange(3)[:, None], np.arange(5)
    words = philox((columns, 7, rows, 0), (1, 2))
    assert words.shape == (4, 3, 5)
    assert words[:, 2, 4].tolist() == philox((4, 7, 2, 0), (1, 2))[:, 0].tolist()


def test_a_position_gets_the_same_words_alone_and_in_any_batch() -> None:
    positions = np.arange(1000)
    together = random_words(7, Purpose.SHUFFLE, 3, positions)
    assert np.array_equal(together[:, ::-1], random_words(7, Purpose.SHUFFLE, 3, positions[::-1]))
    assert np.array_equal(together[:, 41:42], random_words(7, Purpose.SHUFFLE, 3, 41))


def test_seed_purpose_stream_and_position_each_change_the_words() -> None:
    base = random_words(1, Purpose.SHUFFLE, 2, 3)
    others = [
        random_words(2, Purpose.SHUFFLE, 2, 3),
        random_words(1, Purpose.NSP, 2, 3),
        random_words(1, Purpose.SHUFFLE, 2 + 2**32, 3),
        random_words(1, Purpose.SHUFFLE, 2, 3 + 2**32),
    ]
    assert len({tuple(words.ravel().tolist()) for words in [base, *others]}) == 5


def test_no_word_repeats_over_a_million_positions() -> None:
    assert len(np.unique(random_words(0, Purpose.ORDER, 0, np.arange(10**6)))) == 2 * 10**6


def test_uniform_fills_the_unit_interval_evenly() -> None:
    values = uniform(random_words(5, Purpose.MASKING, 0, np.arange(200_000))).ravel()
    counts = np.histogram(values, bins=64, range=(0, 1))[0]
    chi_square = float(((counts - 6250) ** 2 / 6250).sum())
    assert 0 <= values.min() < values.max() < 1
    assert chi_square < 108  # 63 degrees of freedom: exceeded once in 3000 seeds


def test_uniform_never_reaches_one() -> None:
    assert uniform(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0.0, 1 - 2.0**-53]


def test_every_bit_of_both_words_is_fair() -> None:
    words = random_words(9, Purpose.INIT, np.arange(20_000), 1)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little").reshape(2, 20_000, 64)
    share = bits.mean(axis=1)
    assert np.abs(share - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)  # five standard deviations, 128 bits


def test_a_generator_is_a_pure_function_of_seed_purpose_and_position() -> None:
    assert generator(1, Purpose.PACKING, 4).random() == generator(1, Purpose.PACKING, 4).random()
    assert generator(1, Purpose.PACKING, 4).random() != generator(1, Purpose.PACKING, 5).random()


@given(st.integers(1, 2**40), st.integers(0, 2**32 - 1), st.integers(1, 1000), st.data())
def test_large_permutations_stay_inside_and_collide_nowhere(
    num_rows: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    places = np.array(data.draw(st.lists(st.integers(0, num_rows - 1), min_size=1, max_size=50, unique=True)))
    rows = permute(places, num_rows, seed, Purpose.ORDER, epoch)
    assert len(set(rows.tolist())) == len(places)
    assert ((rows >= 0) & (rows < num_rows)).all()


def test_all_orders_of_three_rows_are_about_equally_likely() -> None:
    orders = Counter(tuple(permute(np.arange(3), 3, seed, Purpose.SAMPLING, 1).tolist()) for seed in range(600))
    assert set(orders) == set(permutations(range(3)))
    # Chi-square with 5 degrees of freedom: 20.5 is exceeded once in a thousand.
    assert sum((count - 100) ** 2 / 100 for count in orders.values()) < 20.5
