from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples.encode import Documents
from kexue_train.samples.nsp import IS_NEXT, IS_RANDOM, NO_PAIR, Sequences, make_sequences


def make_documents(lengths: list[int], seed: int = 0) -> Documents:
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    total = int(offsets[-1])
    sentences = np.union1d(offsets[:-1][np.diff(offsets) > 0], np.flatnonzero(rng.random(total) < 0.1))
    words = rng.random(total) < 0.6
    words[sentences] = True
    return Documents(np.arange(total).astype(np.uint32), words, offsets, sentences.astype(np.int64))


def build(documents: Documents, seq_len: int, seed: int = 0, *, nsp: bool = True, short: float = 0.1) -> Sequences:
    rng = np.random.default_rng(seed)
    return make_sequences(documents, seq_len=seq_len, nsp=nsp, short_sequence_probability=short, rng=rng)


LENGTHS = st.lists(st.one_of(st.just(0), st.integers(1, 8), st.integers(1, 200)), min_size=1, max_size=12)
CASES = (LENGTHS, st.integers(5, 64), st.integers(0, 2**32 - 1))


@given(*CASES, st.booleans())
def test_every_token_is_in_exactly_one_sequence_besides_copied_parts(
    lengths: list[int], seq_len: int, seed: int, nsp: bool
) -> None:
    documents = make_documents(lengths, seed)
    found = build(documents, seq_len, seed, nsp=nsp)
    seen = np.zeros(len(documents.token_ids), np.int64)
    for a, a_length, b, b_length, label in zip(*vars(found).values(), strict=True):
        seen[a : a + a_length] += 1
        if label == IS_NEXT:
            seen[b : b + b_length] += 1
    assert (seen == 1).all()


@given(*CASES)
def test_pairs_keep_their_promises(lengths: list[int], seq_len: int, seed: int) -> None:
    documents = make_documents(lengths, seed)
    found = build(documents, seq_len, seed)
    filled = np.flatnonzero(np.diff(documents.offsets))
    for a, a_length, b, b_length, label in zip(*vars(found).values(), strict=True):
        own = np.searchsorted(documents.offsets, a, side="right") - 1
        assert a_length >= 1
        assert a + a_length <= documents.offsets[own + 1]
        if label == NO_PAIR:
            assert b_length == 0
        elif label == IS_NEXT:
            assert (b, b_length > 0) == (a + a_length, True)
            assert b + b_length <= documents.offsets[own + 1]
        else:
            following = filled[(np.searchsorted(filled, own) + 1) % len(filled)]
            assert following != own
            assert b in documents.sentence_starts
            assert documents.offsets[following] <= b < b + b_length <= documents.offsets[following + 1]
    assert (found.lengths <= seq_len).all()


@given(*CASES)
def test_a_pair_is_split_at_a_sentence_if_it_holds_one_else_at_a_word(
    lengths: list[int], seq_len: int, seed: int
) -> None:
    documents = make_documents(lengths, seed)
    found = build(documents, seq_len, seed)
    for a, a_length, _, b_length, label in zip(*vars(found).values(), strict=True):
        if label != NO_PAIR:
            assert documents.word_starts[a + a_length]
        if label == IS_NEXT:
            inside = np.arange(a + 1, a + a_length + b_length)
            assert a + a_length in documents.sentence_starts or not np.isin(inside, documents.sentence_starts).any()
        if label == NO_PAIR:
            assert not documents.word_starts[a + 1 : a + a_length].any()


@given(st.integers(1, 300), st.integers(0, 99))
def test_one_document_alone_has_no_negative_pairs(length: int, seed: int) -> None:
    assert not (build(make_documents([0, length, 0]), 32, seed).labels == IS_RANDOM).any()


def test_half_of_the_pairs_are_negative_and_as_long_as_the_others() -> None:
    found = build(make_documents([900] * 400), 128)
    pairs = found.labels != NO_PAIR
    negative = found.labels[pairs] == IS_RANDOM
    assert abs(negative.mean() - 0.5) < 4 * 0.5 / np.sqrt(pairs.sum())
    full = (found.lengths == 128)[pairs]
    # A label must not show in the length: the shares of full sequences differ only by where documents end.
    assert abs(full[negative].mean() - full[~negative].mean()) < 0.06


def test_sequences_fill_rows_except_the_short_ones_and_the_ends() -> None:
    lengths = build(make_documents([100_000]), 128, short=0.1).lengths
    assert (lengths == 128).mean() == pytest.approx(0.9, abs=0.03)
    assert (build(make_documents([100_000]), 128, short=0.0).lengths[:-1] == 128).all()


def test_without_pairs_sequences_are_full_and_single() -> None:
    found = build(make_documents([300, 0, 126, 1]), 128, nsp=False)
    assert found.lengths.tolist() == [128, 128, 300 - 252 + 2, 128, 3]
    assert (found.labels == NO_PAIR).all()


def test_nothing_comes_from_nothing() -> None:
    assert len(build(make_documents([0, 0]), 128).labels) == 0
