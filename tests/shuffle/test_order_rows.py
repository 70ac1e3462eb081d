from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.shuffle.bucket import order_rows, repeats
from kexue_train.shuffle.rows import Rows

TEXTS = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), min_size=1, max_size=12)


def make_rows(keys, texts) -> Rows:
    return Rows(np.array(keys, np.uint64), pa.array(texts, pa.large_binary()))


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1))
def test_rows_come_in_the_order_of_their_keys(keys):
    order, left_out = order_rows(make_rows(keys, [b"%d" % key for key in keys]), drop_duplicates=False)
    assert [keys[i] for i in order] == sorted(keys)
    assert not len(left_out)


@given(TEXTS, st.randoms())
def test_equal_keys_are_ordered_alike_wherever_the_rows_stood(texts, random):
    moved = texts[:]
    random.shuffle(moved)
    orders = []
    for version in (texts, moved):
        order, _ = order_rows(make_rows([7] * len(version), version), drop_duplicates=False)
        orders.append([version[i] for i in order])
    assert orders[0] == orders[1]


@given(TEXTS)
def test_of_equal_texts_the_first_stays(texts):
    keys = [ord(text) % 3 for text in texts]  # equal texts have equal keys; "a" and "d" too
    order, left_out = order_rows(make_rows(keys, texts), drop_duplicates=True)
    assert sorted(order.tolist()) == sorted(texts.index(text) for text in set(texts))
    assert sorted([*order.tolist(), *left_out.tolist()]) == list(range(len(texts)))
    assert [keys[i] for i in order] == sorted(keys[i] for i in order)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2))))
def test_repeats_are_those_that_stood_before(pairs):
    hashes = np.array(pairs, np.uint64).reshape(-1, 2).T
    assert repeats(hashes).tolist() == [pair in pairs[:i] for i, pair in enumerate(pairs)]


def test_every_order_of_rows_with_one_key_follows_from_their_hashes_alone():
    found = set()
    for texts in itertools.permutations([b"x", b"y", b"z"]):
        order, _ = order_rows(make_rows([1, 1, 1], texts), drop_duplicates=False)
        found.add(tuple(texts[i] for i in order))
    assert len(found) == 1
