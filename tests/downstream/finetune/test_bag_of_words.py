"""The baseline: its minimum against closed and independent solutions, and what it can and cannot learn."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch

from kexue_train.downstream.finetune.bag_of_words import (
    BUCKETS,
    SparseRows,
    Vectorizer,
    count_grams,
    fit_logistic_regression,
    logits,
    score_bag_of_words,
)


def dense_rows(matrix):
    n, columns = matrix.shape
    return SparseRows(
        torch.arange(columns).repeat(n),
        torch.arange(n) * columns,
        torch.from_numpy(matrix.astype(np.float64)).flatten(),
    )


def test_without_features_the_bias_gives_the_frequencies_of_the_labels():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weight, bias = fit_logistic_regression(dense_rows(np.zeros((10, 1))), labels, 3, penalty=1.0, columns=1)
    np.testing.assert_allclose(bias.softmax(0), [0.6, 0.3, 0.1], atol=1e-6)
    np.testing.assert_array_equal(weight, np.zeros((1, 3)))


def test_one_feature_of_two_values_gives_the_frequencies_within_each():
    # feature 0: 3 of 4 have label 1; feature 1: 1 of 4. Hardly any penalty: the closed solution is the table itself.
    feature = np.array([0, 0, 0, 0, 1, 1, 1, 1.0])[:, None]
    labels = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0])
    fitted = fit_logistic_regression(dense_rows(feature), labels, 2, penalty=1e-9, columns=1)
    found = logits(dense_rows(np.array([[0.0], [1.0]])), *fitted).softmax(1)[:, 1]
    np.testing.assert_allclose(found, [0.75, 0.25], atol=1e-5)


def test_the_minimum_is_that_of_newtons_method():
    random = np.random.default_rng(0)
    matrix, labels = random.normal(size=(40, 3)), random.integers(0, 2, 40)
    penalty = 0.7
    weight, bias = fit_logistic_regression(dense_rows(matrix), torch.from_numpy(labels), 2, penalty=penalty, columns=3)
    # Two outputs, both with penalties, are one of their difference u with half of it: ‖w₁‖² + ‖w₀‖² = ‖u‖² / 2.
    design, theta = np.column_stack((matrix, np.ones(40))), np.zeros(4)
    ridge = np.diag([penalty / 2] * 3 + [0])
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ theta))
        gradient = design.T @ (p - labels) + ridge @ theta
        theta -= np.linalg.solve(design.T @ (design * (p * (1 - p))[:, None]) + ridge, gradient)
    np.testing.assert_allclose(weight[:, 1] - weight[:, 0], theta[:3], atol=1e-4)
    np.testing.assert_allclose(bias[1] - bias[0], theta[3], atol=1e-4)


def test_grams_of_a_text_are_all_substrings_of_one_to_four_characters():
    counts = count_grams(("abab",))
    expected = Counter(["a", "b", "a", "b", "ab", "ba", "ab", "aba", "bab", "abab"])
    assert sorted(counts.values()) == sorted(expected.values())
    assert all(0 <= bucket < BUCKETS for bucket in counts)


def test_a_pair_tells_its_texts_and_what_they_share_apart():
    assert count_grams(("a", "b")) != count_grams(("b", "a"))
    assert sum(count_grams(("a", "a")).values()) == 3
    assert sum(count_grams(("a", "b")).values()) == 2


def test_rows_are_unit_vectors_and_what_all_texts_have_counts_nothing():
    texts = [("ax",), ("ay",), ("a",)]
    rows = Vectorizer.fit(texts).rows(texts, torch.float64)
    norms = [float(part.norm()) for part in torch.tensor_split(rows.weights, rows.starts[1:])]
    np.testing.assert_allclose(norms, [1, 1, 0], atol=1e-12)


def make_texts(rule, sizes=(("train", 200), ("dev", 100), ("test", 100))):
    random = np.random.default_rng(1)
    texts, labels = {}, {}
    for split, size in sizes:
        kinds = random.integers(0, 2, size)
        texts[split] = [("".join(random.choice(list(("abc", "def")[kind]), 6)),) for kind in kinds]
        labels[split] = np.array([rule(text, random) for [text] in texts[split]], np.int64)
    return texts, labels


def is_of_abc(text, _random):
    return int(text[0] in "abc")


def test_what_letters_tell_is_learnt_completely():
    texts, labels = make_texts(is_of_abc)
    assert score_bag_of_words(texts, labels, 2).accuracy == {"dev": 1.0, "test": 1.0}


def test_random_labels_are_guessed_at_chance():
    texts, labels = make_texts(lambda _, random: int(random.integers(2)))
    found = score_bag_of_words(texts, labels, 2).accuracy["test"]
    assert abs(found - 0.5) < 4 * (0.25 / 100) ** 0.5  # four standard errors


def test_nothing_in_it_is_random():
    texts, labels = make_texts(is_of_abc)
    assert score_bag_of_words(texts, labels, 2) == score_bag_of_words(texts, labels, 2)
