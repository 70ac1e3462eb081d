"""Rank correlation against the definition, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.downstream.evaluate.sentence_vectors.spearman import spearman, standard_error
from kexue_train.foundation.errors import EvaluationError


def slow(first: list[float], second: list[float]) -> float:
    def ranks(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    a, b = ranks(first), ranks(second)
    n, mean = len(a), (len(a) + 1) / 2
    covariance = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True)) / n
    deviations = [math.sqrt(sum((x - mean) ** 2 for x in r) / n) for r in (a, b)]
    return covariance / (deviations[0] * deviations[1])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-9, 9)), min_size=2, max_size=30))
@settings(max_examples=200, deadline=None)
def test_it_is_the_correlation_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    first, second = ([float(value) for value in column] for column in zip(*pairs, strict=True))
    if len(set(first)) == 1 or len(set(second)) == 1:
        with pytest.raises(EvaluationError, match="ranked"):
            spearman(np.array(first), np.array(second))
    else:
        assert spearman(np.array(first), np.array(second)) == pytest.approx(slow(first, second), abs=1e-12)


def test_only_the_order_counts() -> None:
    random = np.random.default_rng(0)
    values, scores = random.normal(size=50), random.integers(0, 6, 50).astype(float)
    assert spearman(np.exp(values), scores) == pytest.approx(spearman(values, scores))
    assert spearman(-values, scores) == pytest.approx(-spearman(values, scores))
    assert spearman(values, values**3) == pytest.approx(1.0)


def test_the_classic_example() -> None:
    """IQ and hours of television of ten people: -29/165, as in the textbooks."""
    iq = np.array([106, 100, 86, 101, 99, 103, 97, 113, 112, 110.0])
    hours = np.array([7, 27, 2, 50, 28, 29, 20, 12, 6, 17.0])
    assert spearman(iq, hours) == pytest.approx(-29 / 165)


def test_what_has_no_order_is_refused() -> None:
    some = np.arange(4.0)
    with pytest.raises(EvaluationError, match="all 4 scores are 3, so they cannot be ranked"):
        spearman(some, np.full(4, 3.0))
    with pytest.raises(EvaluationError, match="all 4 cosines of the vectors are 1"):
        spearman(np.ones(4), some)
    with pytest.raises(EvaluationError, match="1 of 4 cosines of the vectors are not finite"):
        spearman(np.array([0, 1, np.nan, 2]), some)
    with pytest.raises(EvaluationError, match="1 pairs"):
        spearman(some[:1], some[:1])


def test_the_standard_error_is_how_far_samples_differ() -> None:
    random = np.random.default_rng(1)
    found = []
    for _ in range(2000):
        x = random.normal(size=100)
        found.append(spearman(x, 0.6 * x + 0.8 * random.normal(size=100)))
    assert standard_error(float(np.mean(found)), 100) == pytest.approx(np.std(found), rel=0.1)
