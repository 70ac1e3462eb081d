from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from kexue_train.shuffle.keys import content_keys, hash_rows, position_keys, sum_words
from tests.reference.row_hashes import sum_hashes, text_hashes


def to_integers(words) -> list[int]:
    return [(high << 64) | low for high, low in words.T.tolist()]


@given(st.lists(st.binary()))
def test_hashes_and_their_sum_are_those_of_the_texts_one_by_one(texts):
    expected = text_hashes(texts)
    words = hash_rows(pa.array(texts, pa.large_binary()))
    assert to_integers(words) == expected
    assert sum_words(words) == sum_hashes(expected)


def test_kept_columns_are_part_of_a_rows_hash():
    texts, extras = pa.array([b"a", b"b"], pa.large_binary()), pa.array([b"[null]", b"[1]"], pa.large_binary())
    assert to_integers(hash_rows(texts, extras)) == text_hashes([b"a\n[null]", b"b\n[1]"])


def test_texts_of_any_size_are_hashed_in_slices():
    texts = [b"x" * size for size in (0, 3 << 20, 1, 1 << 20, 5)]
    assert to_integers(hash_rows(pa.array(texts, pa.large_binary()))) == text_hashes(texts)


@given(npst.arrays(np.uint64, st.tuples(st.just(2), st.integers(0, 50))))
def test_the_sum_wraps_at_128_bits(words):
    assert sum_words(words) == sum(to_integers(words)) % 2**128


def test_keys_depend_on_seed_file_and_position_and_never_collide():
    positions = np.arange(1000, dtype=np.uint64)
    keys = [
        key
        for seed in (0, 1)
        for file in (0, 1)
        for copy in (0, 1)
        for key in position_keys(seed, file, positions, copy).tolist()
    ]
    assert len(set(keys)) == 8000


def test_equal_texts_get_equal_keys_and_others_do_not():
    hashes = hash_rows(pa.array([b"a", b"b", b"a"], pa.large_binary()))
    keys = content_keys(7, hashes).tolist()
    assert keys[0] == keys[2] != keys[1]
    assert content_keys(7, hashes, copy=1).tolist()[0] not in keys


@given(st.lists(st.binary(), max_size=8), st.randoms())
def test_the_checksum_of_rows_ignores_their_order_and_nothing_else(rows, random):
    def checksum(texts):
        return sum_words(hash_rows(pa.array(texts, pa.large_binary())))

    shuffled = list(rows)
    random.shuffle(shuffled)
    total = checksum(rows)
    assert total == checksum(shuffled)
    assert total != checksum([*rows, b""])
    assert total != checksum([*rows, *rows[:1]]) or not rows
    assert total == (checksum(rows[:3]) + checksum(rows[3:])) % (1 << 128)


def test_the_hash_is_xxh3_of_128_bits():
    # XXH3_128bits of the empty input, seed 0: xxhash's own sanity test.
    assert f"{sum_words(hash_rows(pa.array([b''], pa.large_binary()))):032x}" == "99aa06d3014798d86001c324468d497f"
