"""Sampling and search on tiny vocabularies, against exact probabilities; and decoding that always stops."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.downstream.paraphrase.beam import beam_search
from kexue_train.downstream.paraphrase.sampling import draw, sample, truncate
from kexue_train.downstream.paraphrase.stopping import EPSILON, Stopping, raise_end
from kexue_train.foundation.errors import ConfigError

END = 0


def log(probs):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(probs, np.float64))


def memoryless(probs):
    """A model that always gives the same probabilities."""
    return lambda written: np.tile(log(probs), (len(written), 1))


def random_model(size, seed):
    """Probabilities that depend on everything that was written."""

    def next_tokens(written):
        rows = [np.random.default_rng([seed, *row]).dirichlet(np.ones(size)) for row in written.tolist()]
        return log(rows)

    return next_tokens


def never_ends(size, seed=0):
    """The end is the one token that such a model never proposes."""
    model = random_model(size, seed)

    def next_tokens(written):
        found = model(written)
        found[:, END] = -np.inf
        return found - np.logaddexp.reduce(found, axis=1, keepdims=True)

    return next_tokens


@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=8), st.integers(1, 9), st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_truncation_keeps_what_its_words_say_and_the_end(weights, top_k, top_p):
    probs = np.array(weights) / sum(weights)
    order = sorted(range(len(probs)), key=lambda token: (-probs[token], token))
    cases = {"top_k": order[:top_k], "top_p": []}
    total = 0.0
    for token in order:
        if total < top_p - 1e-9:
            cases["top_p"].append(token)
        total += probs[token]
    for name, value in (("top_k", top_k), ("top_p", top_p)):
        found = np.exp(truncate(log([probs]), END, **{name: value})[0])
        kept = {*cases[name], END}
        expected = np.array([probs[token] if token in kept else 0 for token in range(len(probs))])
        if name == "top_p" and set(np.flatnonzero(found)) != kept:  # a sum that meets top_p up to rounding
            continue
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-12)


def test_of_equal_tokens_the_first_ones_are_kept():
    found = np.exp(truncate(log([[0.2] * 5]), 4, top_k=2)[0])
    np.testing.assert_allclose(found, [1 / 3, 1 / 3, 0, 0, 1 / 3])


def test_without_the_end_in_the_truncated_set_a_text_would_never_stop():
    """The example of kexue.fm 7500: the end is always possible and never among the likeliest."""
    model = memoryless([0.1, 0.5, 0.4])
    texts = sample(model, 200, 400, end=END, seed=0, top_k=2)
    assert all(text.is_complete for text in texts)
    lengths = np.array([len(text.ids) for text in texts])
    assert lengths.mean() == pytest.approx(9, rel=0.25)  # geometric with 0.1 / 1.0


def test_samples_have_the_exact_distribution():
    """All texts of a model of three tokens, by enumeration: chi-squared of 4,000 draws."""
    model, number, limit = random_model(3, seed=3), 4000, 4
    texts = sample(model, number, limit, end=END, seed=5, top_p=0.9)
    exact = {}
    for length in range(limit + 1):
        for ids in itertools.product((1, 2), repeat=length):
            log_prob, ended = 0.0, length < limit
            for step, token in enumerate((*ids, END)[:limit]):
                log_prob += truncate(model(np.array([ids[:step]], np.int64).reshape(1, -1)), END, top_p=0.9)[0, token]
            if (ended or length == limit) and log_prob > -math.inf:
                exact[ids, ended] = math.exp(log_prob)
    assert sum(exact.values()) == pytest.approx(1)
    found = Counter((text.ids, text.is_complete) for text in texts)
    assert found.keys() <= exact.keys()
    chi = sum((found[text] - number * p) ** 2 / (number * p) for text, p in exact.items())
    freedom = len(exact) - 1
    assert chi < freedom + 5 * math.sqrt(2 * freedom)


def test_a_draw_is_the_inverse_of_the_cumulative_probability():
    rows = log([[0.25, 0.0, 0.75]] * 5)
    assert draw(rows, np.array([0.0, 0.2499, 0.25, 0.9, 1 - 2**-53])).tolist() == [0, 0, 2, 2, 2]


def test_seeds_repeat_differ_and_a_text_does_not_depend_on_how_many_are_drawn():
    model = random_model(6, seed=1)
    few, many, again = (sample(model, number, 12, end=END, seed=7, top_k=3) for number in (5, 20, 20))
    assert many == again
    assert many[:5] == few
    assert sample(model, 20, 12, end=END, seed=8, top_k=3) != many


def test_the_probability_of_a_sample_is_that_of_the_model():
    model = random_model(5, seed=2)
    for text in sample(model, 10, 8, end=END, seed=0, top_k=2):
        ids = (*text.ids, *([END] if text.is_complete else []))
        steps = [model(np.array([ids[:i]], np.int64).reshape(1, -1))[0, token] for i, token in enumerate(ids)]
        assert text.log_prob == pytest.approx(sum(steps))


def all_texts(model, size, limit):
    """Every text of at most ``limit`` tokens, the end among them, with its log-probability; the best first."""
    found, open_texts = [], [((), 0.0)]
    for _ in range(limit):
        longer = []
        for ids, score in open_texts:
            log_probs = model(np.array([ids], np.int64).reshape(1, -1))[0]
            found.append((ids, score + log_probs[END]))
            longer += [((*ids, token), score + log_probs[token]) for token in range(1, size)]
        open_texts = longer
    return sorted(found, key=lambda entry: -entry[1])


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_wide_enough_finds_the_best_texts_of_all(seed):
    model = random_model(4, seed)
    best = all_texts(model, 4, 5)
    found = [text for text in beam_search(model, 4**5, 5, end=END) if text.is_complete]
    assert [text.ids for text in found[:10]] == [ids for ids, _ in best[:10]]
    np.testing.assert_allclose([text.log_prob for text in found[:10]], [score for _, score in best[:10]])


def test_one_beam_is_greedy():
    model, ids = random_model(5, seed=9), ()
    while (token := int(model(np.array([ids], np.int64).reshape(1, -1)).argmax())) != END and len(ids) < 30:
        ids = (*ids, token)
    assert beam_search(model, 1, 31, end=END)[0].ids == ids


def test_ties_in_a_beam_go_to_the_finished_then_to_the_better_then_to_the_lower_token():
    found = beam_search(memoryless([0.25] * 4), 3, 3, end=END)
    assert [text.ids for text in found] == [(), (1,), (2,)]


@given(st.integers(0, 40), st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_the_raised_end_is_a_distribution_with_its_bound_and_leaves_the_others_in_order(steps, seed):
    before = log([np.random.default_rng(seed).dirichlet(np.ones(6))])
    after = raise_end(before, 3, steps)
    assert np.exp(after).sum() == pytest.approx(1)
    assert np.exp(after[0, 3]) >= 1 - (1 - EPSILON) ** steps - 1e-12
    others = [0, 1, 2, 4, 5]
    np.testing.assert_allclose(np.diff(after[0, others]), np.diff(before[0, others]), atol=1e-9)
    assert after[0, 3] >= before[0, 3]


@pytest.mark.parametrize("width", [1, 3, 20])
def test_every_beam_ends_within_its_bound_even_if_the_model_never_ends(width):
    model = never_ends(7)
    limit = 12 + width
    stopping = Stopping.of_beams(limit, width)
    found = beam_search(stopping.bound(model, END), width, limit, end=END)
    assert len(found) == width
    assert all(text.is_complete for text in found)
    assert max(len(text.ids) for text in found) < limit
    unbounded = beam_search(model, width, limit, end=END)
    assert not any(text.is_complete for text in unbounded)


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_every_beam_of_any_model_ends_within_its_bound(seed, width, room):
    model = random_model(4, seed) if seed % 2 else never_ends(4, seed)
    stopping = Stopping.of_beams(7 + width + room, width)
    assert stopping.after == room
    found = beam_search(stopping.bound(model, END), width, stopping.limit, end=END)
    assert all(text.is_complete for text in found)


def test_the_bound_is_not_looser_than_it_has_to_be():
    """With certain tokens, one beam runs until the end is likelier than everything else: then, and not before."""
    stopping = Stopping.of_beams(40, 1)
    [found] = beam_search(stopping.bound(memoryless([0.0, 1.0]), END), 1, 40, end=END)
    assert len(found.ids) == next(t for t in range(99) if (1 - EPSILON) ** (t - stopping.after) < 0.5)
    assert len(found.ids) + 1 == 40


def test_samples_end_within_their_room_even_if_the_model_never_ends():
    stopping = Stopping.of_samples(24)
    texts = sample(stopping.bound(never_ends(4), END), 1000, 24, end=END, seed=0, top_p=0.9)
    assert all(text.is_complete for text in texts)
    assert not any(text.is_complete for text in sample(never_ends(4), 10, 24, end=END, seed=0))


def test_shorter_texts_keep_the_probabilities_of_the_model():
    model, stopping = random_model(5, seed=4), Stopping.of_beams(40, 4)
    written = np.ones((2, stopping.after), np.int64)
    assert np.array_equal(stopping.bound(model, END)(written), model(written))
    longer = np.ones((2, stopping.after + 1), np.int64)
    assert not np.array_equal(stopping.bound(model, END)(longer), model(longer))


def test_too_little_room_to_stop_is_refused():
    with pytest.raises(ConfigError, match=r"max_tokens=27 is too few for 20 beams, .* give --max-tokens 28 or more"):
        Stopping.of_beams(27, 20)
    Stopping.of_beams(28, 20)
    with pytest.raises(ConfigError, match="max_tokens=10 is too few for samples"):
        Stopping.of_samples(10)
