import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from kexue_train.downstream.evaluate.zero_shot.contrast import (
    by_thresholds,
    candidates_contrast,
    find_thresholds,
    samples_contrast,
)

finite = st.floats(-100, 100)
matrices = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=finite)
vectors = arrays(np.float64, st.integers(1, 40), elements=finite)
distinct = arrays(np.float64, st.integers(4, 40), elements=finite, unique=True)


def names(number):
    return [f"text {i}" for i in range(number)]


@given(matrices, st.data())
def test_candidates_contrast_does_not_change_when_a_label_is_doubled(scores, data):
    label = data.draw(st.integers(0, scores.shape[1] - 1))
    doubled = np.concatenate([scores, scores[:, [label]]], axis=1)
    owner = np.array([*range(scores.shape[1]), label])
    assert (owner[candidates_contrast(doubled)] == candidates_contrast(scores)).all()


@given(matrices)
def test_no_other_label_scores_higher(scores):
    best = np.take_along_axis(scores, candidates_contrast(scores)[:, None], axis=1)
    assert (scores <= best).all()


@given(vectors, st.integers(2, 5))
def test_all_parts_are_equally_large_and_the_top_one_has_the_remainder(scores, num_labels):
    found = np.bincount(samples_contrast(scores, num_labels, names(len(scores))), minlength=num_labels)
    part = len(scores) // num_labels
    assert found.tolist() == [part] * (num_labels - 1) + [len(scores) - part * (num_labels - 1)]


@given(distinct, st.integers(2, 4))
def test_a_higher_score_never_has_a_lower_label(scores, num_labels):
    labels = samples_contrast(scores, num_labels, names(len(scores)))
    assert (np.diff(labels[np.argsort(scores)]) >= 0).all()


@given(arrays(np.float64, st.sampled_from([6, 12, 24]), elements=finite, unique=True), st.sampled_from([2, 3]))
def test_flipped_scores_give_flipped_labels(scores, num_labels):
    labels = samples_contrast(scores, num_labels, names(len(scores)))
    assert (samples_contrast(-scores, num_labels, names(len(scores))) == num_labels - 1 - labels).all()


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=30), st.randoms(use_true_random=False))
def test_labels_do_not_depend_on_the_order_of_the_file(scores, random):
    order = list(range(len(scores)))
    random.shuffle(order)
    labels = samples_contrast(np.array(scores), 2, names(len(scores)))
    moved = samples_contrast(np.array(scores)[order], 2, [names(len(scores))[i] for i in order])
    assert (moved == labels[order]).all()


def test_one_score_for_all_is_chance_in_a_file_sorted_by_label():
    answers = np.repeat([0, 1], 2000)
    right = (samples_contrast(np.zeros(4000), 2, names(4000)) == answers).mean()
    assert right == pytest.approx(0.5, abs=5 * math.sqrt(0.25 / 4000))


def test_a_single_record_gets_the_top_label():
    assert samples_contrast(np.array([-3.0]), 3, ["x"]).tolist() == [2]


@given(vectors, arrays(np.float64, st.integers(1, 4), elements=finite))
def test_the_label_is_the_number_of_thresholds_not_above(scores, thresholds):
    thresholds = np.sort(thresholds)
    assert by_thresholds(scores, thresholds).tolist() == [sum(t <= score for t in thresholds) for score in scores]


@given(distinct, st.integers(2, 4))
def test_thresholds_cut_the_set_they_come_from_as_its_own_order_does(scores, num_labels):
    thresholds = find_thresholds(scores, num_labels)
    assert len(thresholds) == num_labels - 1
    expected = samples_contrast(scores, num_labels, names(len(scores)))
    assert (by_thresholds(scores, thresholds) == expected).all()


def test_thresholds_by_hand():
    assert find_thresholds(np.array([5.0, 1.0, 3.0, 2.0, 4.0, 6.0, 7.0]), 3).tolist() == [3.0, 5.0]


def test_too_few_scores_have_no_thresholds():
    with pytest.raises(ValueError, match="2 scores cannot be cut into 3 parts"):
        find_thresholds(np.zeros(2), 3)
