import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kexue_train.downstream.evaluate.baselines import (
    TokenSums,
    WordSums,
    frequency_bands,
    unigram_cross_entropy,
    unigram_entropy,
)

counts = arrays(np.int64, 12, elements=st.integers(0, 50)).filter(lambda array: array.sum() > 0)


def test_entropy_of_a_uniform_distribution_is_its_logarithm():
    assert unigram_entropy(np.full(8, 3)) == pytest.approx(math.log(8))


@given(counts)
def test_entropy_is_the_mean_loss_of_predicting_the_empirical_frequencies(array):
    targets = np.repeat(np.arange(len(array)), array)
    losses = [-math.log((targets == target).mean()) for target in targets]
    assert unigram_entropy(array) == pytest.approx(np.mean(losses), abs=1e-12)


@given(counts, arrays(np.float64, 12, elements=st.floats(0.01, 1)))
def test_no_context_free_distribution_beats_the_entropy(array, weights):
    share = weights / weights.sum()
    assert -(array * np.log(share)).sum() / array.sum() >= unigram_entropy(array) - 1e-12


@given(counts, counts)
def test_training_frequencies_are_never_better_than_the_entropy(array, training):
    assert unigram_cross_entropy(array, training) >= unigram_entropy(array) - 1e-12


def test_cross_entropy_adds_one_to_every_training_count():
    expected = -(2 * math.log(4 / 6) + math.log(1 / 6)) / 3
    assert unigram_cross_entropy(np.array([2, 1, 0]), np.array([3, 0, 0])) == pytest.approx(expected)


@given(counts)
def test_bands_hold_every_token_once_the_most_frequent_first(array):
    bands = frequency_bands(array)
    joined = np.concatenate(bands)
    assert sorted(joined) == list(range(len(array)))
    assert (np.diff(array[joined]) <= 0).all()


def test_bands_of_equal_tokens_are_equally_large():
    assert [len(band) for band in frequency_bands(np.full(40, 7))] == [10, 10, 10, 10]


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12), min_size=1, max_size=3))
def test_a_word_is_right_if_all_its_tokens_are(batches):
    sums, words = WordSums(), []
    for batch in batches:
        sums.add(np.array([word for word, _ in batch], np.int64), np.array([right for _, right in batch], np.bool_))
        words += [all(right for other, right in batch if other == word) for word in {word for word, _ in batch}]
    assert sums.scores() == {"words": len(words), "word_accuracy": np.mean(words) if words else None}


def test_sums_give_means_over_predictions():
    sums = TokenSums.zeros(4)
    sums.add(np.array([1, 1, 3]), np.array([1.0, 2.0, 6.0]), np.array([True, False, False]))
    assert sums.scores() == {"predictions": 3, "mlm_loss": 3.0, "mlm_accuracy": pytest.approx(1 / 3)}
    assert sums.scores(np.array([0, 2])) == {"predictions": 0, "mlm_loss": None, "mlm_accuracy": None}
