from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from kexue_train.arrow_shards import sum_hashes, text_hashes
from kexue_train.shuffle.keys import content_keys, hash_texts, position_keys, sum_words, to_integers


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_hashes_and_their_sum_are_those_of_the_texts_one_by_one(texts):
    expected = text_hashes([text.encode() for text in texts])
    words = hash_texts(pa.array(texts, pa.large_string()))
    assert to_integers(words) == expected
    assert sum_words(words) == sum_hashes(expected)


@given(npst.arrays(np.uint64, st.tuples(st.just(2), st.integers(0, 50))))
def test_the_sum_wraps_at_128_bits(words):
    assert sum_words(words) == sum(to_integers(words)) % 2**128


def test_keys_depend_on_seed_file_and_position_and_never_collide():
    positions = np.arange(1000, dtype=np.uint64)
    keys = [key for seed in (0, 1) for file in (0, 1) for key in to_integers(position_keys(seed, file, positions))]
    assert len(set(keys)) == 4000


def test_equal_texts_get_equal_keys_and_others_do_not():
    keys = to_integers(content_keys(7, hash_texts(pa.array(["a", "b", "a"], pa.large_string()))))
    assert keys[0] == keys[2] != keys[1]
