from __future__ import annotations

import gzip
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples.encode import Documents
from kexue_train.samples.nsp import IS_NEXT, IS_RANDOM, NO_PAIR, Sequences, make_sequences
from kexue_train.samples.sentences import sentence_cuts
from tests.samples.random_documents import random_documents


def build(documents: Documents, seq_len: int, seed: int = 0, *, nsp: bool = True, short: float = 0.1) -> Sequences:
    rng = np.random.default_rng(seed)
    return make_sequences(documents, seq_len=seq_len, nsp=nsp, short_sequence_probability=short, rng=rng)


LENGTHS = st.lists(st.one_of(st.just(0), st.integers(1, 8), st.integers(1, 200)), min_size=1, max_size=24)
CASES = (LENGTHS, st.integers(5, 64), st.integers(0, 2**32 - 1))


@given(*CASES, st.booleans())
def test_every_token_is_in_exactly_one_sequence_besides_copied_parts(
    lengths: list[int], seq_len: int, seed: int, nsp: bool
) -> None:
    documents = random_documents(lengths, seed)
    found = build(documents, seq_len, seed, nsp=nsp)
    seen = np.zeros(len(documents.token_ids), np.int64)
    for a, a_length, b, b_length, label in zip(*vars(found).values(), strict=True):
        seen[a : a + a_length] += 1
        if label == IS_NEXT:
            seen[b : b + b_length] += 1
    assert (seen == 1).all()


@given(*CASES)
def test_pairs_keep_their_promises(lengths: list[int], seq_len: int, seed: int) -> None:
    documents = random_documents(lengths, seed)
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
            other = np.searchsorted(documents.offsets, b, side="right") - 1
            ahead = (np.searchsorted(filled, other) - np.searchsorted(filled, own)) % len(filled)
            assert 1 <= ahead <= 16
            assert b_length >= 1
            assert b + b_length <= documents.offsets[other + 1]
    assert (found.lengths <= seq_len).all()


@given(*CASES)
def test_both_kinds_of_b_begin_with_a_sentence_that_is_not_the_first_of_its_document(
    lengths: list[int], seq_len: int, seed: int
) -> None:
    documents = random_documents(lengths, seed)
    found = build(documents, seq_len, seed)
    sentences = documents.sentence_starts
    for b in found.b_starts[found.labels != NO_PAIR]:
        assert b in sentences
        document = np.searchsorted(documents.offsets, b, side="right") - 1
        start, end = documents.offsets[document : document + 2]
        assert b != start or np.count_nonzero((start <= sentences) & (sentences < end)) == 1


@given(*CASES)
def test_what_holds_a_sentence_border_is_a_pair_split_there_and_what_holds_none_is_single(
    lengths: list[int], seq_len: int, seed: int
) -> None:
    documents = random_documents(lengths, seed)
    found = build(documents, seq_len, seed)
    for a, a_length, _, _, label in zip(*vars(found).values(), strict=True):
        if label == NO_PAIR:
            assert not np.isin(np.arange(a + 1, a + a_length), documents.sentence_starts).any()
        else:
            assert a + a_length in documents.sentence_starts


@given(LENGTHS, st.integers(0, 99))
def test_documents_that_stay_whole_and_single_are_counted(lengths: list[int], seed: int) -> None:
    documents = random_documents(lengths, seed, sentence_share=0.02)
    found = build(documents, 64, seed)
    single = zip(found.a_starts[found.labels == NO_PAIR], found.a_lengths[found.labels == NO_PAIR], strict=True)
    spans = {(int(start), int(start + length)) for start, length in single}
    assert found.count_whole(documents) == sum(span in spans for span in itertools.pairwise(documents.offsets.tolist()))


def written_documents(texts: list[list[str]]) -> Documents:
    """Documents of the given sentences, of which every character is a token."""
    sentences = [sentence for text in texts for sentence in text]
    starts = np.cumsum([0, *map(len, sentences)])
    offsets = starts[np.cumsum([0, *map(len, texts)])]
    characters = np.frombuffer("".join(sentences).encode("utf-32-le"), np.uint32)
    return Documents(characters, np.ones(len(characters), np.bool_), offsets, starts[:-1])


def negatives(documents: Documents, seq_len: int = 32, **options: float) -> list[tuple[int, str, str]]:
    """Start of A, A and B of every negative pair."""
    text = documents.token_ids.tobytes().decode("utf-32-le")
    found = build(documents, seq_len, **options)
    chosen = found.take(np.flatnonzero(found.labels == IS_RANDOM))
    return [
        (a, text[a : a + a_length], text[b : b + b_length])
        for a, a_length, b, b_length, _ in zip(*(column.tolist() for column in vars(chosen).values()), strict=True)
    ]


COPIES = [
    [["It rains. ", "We stay. "], ["A cat sat. ", "It is big. "]] * 30,
    [[f"Page {i}. ", "All rights reserved. ", f"The end of {i}. "] for i in range(60)],
    [["Once upon a time. ", "There was a king. ", *ending] for ending in (["He ran. "], ["He sat. ", "So. "])] * 30,
    [["A. ", "B. ", "C. ", "D. "], ["A. ", "D. ", "C. ", "B. "], ["C. ", "A. ", "D. "]] * 20,
]


@pytest.mark.parametrize("texts", COPIES, ids=["copies", "boilerplate", "same beginning", "same sentences"])
@pytest.mark.parametrize("seq_len", [16, 32, 64])
def test_no_negative_pair_is_a_true_one(texts: list[list[str]], seq_len: int) -> None:
    documents = written_documents(texts)
    whole = {"".join(text) for text in texts}
    text = documents.token_ids.tobytes().decode("utf-32-le")
    found = negatives(documents, seq_len, short=0.5)
    assert len(found) > 20
    for start, a, b in found:
        assert not text[start + len(a) :].startswith(b)
        assert not any(a + b in other for other in whole if len(a) > 10)


def test_copies_of_one_pair_of_sentences_have_no_negative_pairs() -> None:
    labels = build(written_documents([["It rains. ", "We stay. "]] * 40), 32, short=0.0).labels
    assert labels.tolist() == [IS_NEXT] * 40


def test_pairs_of_documents_without_a_common_sentence_are_those_of_the_first_release() -> None:
    texts = [[f"{chr(200 + 9 * i + j)}{'-' * j}. " for j in range(9)] for i in range(60)]
    found = build(written_documents(texts), 32)
    starts = np.searchsorted(written_documents(texts).offsets, [found.a_starts, found.b_starts], side="right")
    ahead = (starts[1] - starts[0])[found.labels == IS_RANDOM] % len(texts)
    assert set(ahead.tolist()) == {1}
    assert hashlib.sha256(np.stack(list(vars(found).values())).tobytes()).hexdigest()[:16] == "b95d6d88bb36a186"


@given(st.integers(1, 300), st.integers(0, 99))
def test_one_document_alone_has_no_negative_pairs(length: int, seed: int) -> None:
    assert not (build(random_documents([0, length, 0]), 32, seed).labels == IS_RANDOM).any()


def test_b_comes_from_the_next_document_that_is_long_enough() -> None:
    # Every second document is too short; sentences of ten tokens.
    offsets = np.cumsum([0, *[1000, 20] * 20])
    sentences = np.arange(0, offsets[-1], 10)
    documents = Documents(np.arange(offsets[-1]).astype(np.uint16), np.ones(offsets[-1], np.bool_), offsets, sentences)
    found = build(documents, 128, short=0.0)
    long = (found.labels == IS_RANDOM) & (found.b_lengths > 10)
    own, other = (
        np.searchsorted(offsets, starts[long], side="right") - 1 for starts in (found.a_starts, found.b_starts)
    )
    assert long.sum() > 50
    assert ((other - own) % 40 == 2).all()


def test_half_of_the_pairs_are_negative() -> None:
    labels = build(random_documents([900] * 400), 128).labels
    negative = labels[labels != NO_PAIR] == IS_RANDOM
    assert abs(negative.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(negative))


def test_sequences_fill_rows_except_the_short_ones_and_the_ends() -> None:
    lengths = build(random_documents([100_000]), 128, short=0.1).lengths
    assert (lengths == 128).mean() == pytest.approx(0.9, abs=0.03)
    assert (build(random_documents([100_000]), 128, short=0.0).lengths[:-1] == 128).all()


def test_without_pairs_sequences_are_full_and_single() -> None:
    found = build(random_documents([300, 0, 126, 1]), 128, nsp=False)
    assert found.lengths.tolist() == [128, 128, 300 - 252 + 2, 128, 3]
    assert (found.labels == NO_PAIR).all()


@pytest.mark.parametrize("nsp", [True, False])
def test_nothing_comes_from_nothing(nsp: bool) -> None:
    assert len(build(random_documents([0, 0]), 128, nsp=nsp).labels) == 0


def visible(documents: Documents, found: Sequences) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """(pairs, features) what is seen of a pair besides its words, and (pairs,) whether it is negative."""
    begins = np.zeros(len(documents.token_ids) + 1, np.bool_)
    begins[[*documents.sentence_starts, -1]] = True
    found = found.take(np.flatnonzero(found.labels != NO_PAIR))
    a, b = found.a_lengths, found.b_lengths
    starts_document = np.isin(found.a_starts, documents.offsets)
    features = [a, b, a + b, starts_document, begins[found.a_starts], begins[found.b_starts + b]]
    return np.stack(features, axis=1).astype(np.float64), (found.labels == IS_RANDOM).astype(np.int64)


def accuracy_above_chance(features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
    """By how many standard errors a logistic regression fitted on half of the pairs beats a coin on the other half."""
    squares = features[:, :3] ** 2
    inputs = np.concatenate([features, squares, features[:, :1] * features[:, 1:3]], axis=1)
    inputs = (inputs - inputs.mean(axis=0)) / (inputs.std(axis=0) + 1e-9)
    inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], axis=1)
    fitted, tested = slice(0, None, 2), slice(1, None, 2)
    weights = np.zeros(inputs.shape[1])
    for _ in range(20):  # Newton's method
        p = 1 / (1 + np.exp(-inputs[fitted] @ weights))
        hessian = (inputs[fitted] * (p * (1 - p))[:, None]).T @ inputs[fitted] + 1e-3 * np.eye(len(weights))
        weights += np.linalg.solve(hessian, inputs[fitted].T @ (labels[fitted] - p))
    right = (inputs[tested] @ weights > 0) == labels[tested]
    return float((right.mean() - 0.5) * 2 * np.sqrt(len(right)))


def share_gaps(features: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> list[float]:
    """Of each feature, by how many standard errors its mean differs between the two labels."""
    halves = [features[labels == label] for label in (0, 1)]
    error = np.sqrt(sum(half.var(axis=0) / len(half) for half in halves))
    return (np.abs(halves[0].mean(axis=0) - halves[1].mean(axis=0)) / (error + 1e-12)).tolist()


@pytest.mark.parametrize("seq_len", [64, 512])
def test_the_label_shows_in_nothing_but_the_words(seq_len: int) -> None:
    lengths = np.random.default_rng(1).integers(1, 700, 4000).tolist()
    documents = random_documents(lengths)
    features, labels = visible(documents, build(documents, seq_len))
    assert len(labels) > 5000
    assert accuracy_above_chance(features, labels) < 4
    assert max(share_gaps(features, labels)) < 4


def test_the_measure_of_what_shows_sees_a_single_token() -> None:
    documents = random_documents([600] * 1000)
    features, labels = visible(documents, build(documents, 128))
    features[labels == 1, 1:3] -= 1  # negative Bs, and so the whole, are one token shorter
    assert accuracy_above_chance(features, labels) > 5


@pytest.mark.parametrize("seq_len", [128, 512])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_label_does_not_show_in_real_documents(shared_data: Path, language: str, seq_len: int) -> None:
    documents = real_documents(shared_data / "corpus" / language / f"{language}wiki-000.jsonl.gz", 6000)
    features, labels = visible(documents, build(documents, seq_len))
    assert accuracy_above_chance(features, labels) < 4
    assert max(share_gaps(features, labels)) < 4


def real_documents(path: Path, num_documents: int) -> Documents:
    """Documents whose tokens are their characters."""
    with gzip.open(path) as file:
        texts = [json.loads(line)["text"] for line in itertools.islice(file, num_documents)]
    offsets = np.cumsum([0, *map(len, texts)])
    cuts = [[0, *sentence_cuts(text)] if text else [] for text in texts]
    sentences = np.concatenate([np.array(cut, np.int64) + start for cut, start in zip(cuts, offsets, strict=False)])
    characters = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    return Documents(characters, np.ones(len(characters), np.bool_), offsets, sentences)
