from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.foundation.arrow_arrays import to_binary
from kexue_train.shuffle.near import ngrams
from kexue_train.shuffle.near.ngrams import iter_grams
from tests.reference import near_duplicates as reference

ALPHABET = "ab Z9,.\n_-的一是Ü\u00e9ß\u3042ж\U0001f600"
TEXTS = st.lists(st.text(ALPHABET, max_size=40), min_size=1, max_size=12)


def grams_of(texts, length):
    found = [[] for _ in texts]
    for first, grams in iter_grams(to_binary([text.encode() for text in texts]), length):
        for i in range(len(grams.bounds) - 1):
            found[first + i] += grams.hashes[grams.bounds[i] : grams.bounds[i + 1]].tolist()
    return found


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(1, 6))
def test_hashes_are_equal_exactly_where_ngrams_are(texts, length):
    found = grams_of(texts, length)
    expected = [reference.ngrams(text, length) for text in texts]
    assert [len(set(hashes)) for hashes in found] == [len(grams) for grams in expected]
    for i in range(len(texts)):
        for j in range(i):
            assert len(set(found[i]) & set(found[j])) == len(expected[i] & expected[j])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_long_text_has_the_ngrams_that_it_has_in_one_piece(monkeypatch, length):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 6)) for _ in range(50)]
    text = " ".join(rng.choice(words, 900)) + " " + "".join(map(chr, rng.integers(0x4E00, 0x4F00, 300)))
    whole = grams_of([text, text[:30]], length)
    monkeypatch.setattr(ngrams, "PIECE_BYTES", 512)
    monkeypatch.setattr(ngrams, "_LOOK_BACK", 64)
    assert grams_of([text, text[:30]], length) == whole


def test_a_text_of_fewer_tokens_has_one_ngram_and_one_without_tokens_none():
    assert [len(grams) for grams in grams_of(["", "...", "one", "one two", "One, TWO!", "two one", "的 的"], 5)] == [
        0, 0, 1, 1, 1, 1, 1,
    ]  # fmt: skip
    _, _, one, two, same, other, _ = grams_of(["", "...", "one", "one two", "One, TWO!", "two one", "的 的"], 5)
    assert two == same
    assert len({*one, *two, *other}) == 3


def test_bytes_that_are_not_utf8_separate_words_and_never_join_texts():
    pieces = [b"one\xfftwo", b"caf\xc3", b"\xa9 x"]  # the last two would make an e with an accent
    (_, grams), *_ = iter_grams(to_binary(pieces), 1)
    assert np.diff(grams.bounds).tolist() == [2, 1, 1]
    (_, clean), *_ = iter_grams(to_binary([b"one two", b"caf", b"x"]), 1)
    assert grams.hashes.tolist() == clean.hashes.tolist()
