from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.batches.collate import fill_slots, pair_capacity, prediction_capacity, used_slots


def test_the_rule_by_hand() -> None:
    # 32 · 510 · 0.15 = 2448 predicted pieces in the mean; √(16320 · 0.15 · 0.85 · 1.5) = 55.87; 2448 + 335.2 < 2816
    assert prediction_capacity(32, 512, 0.15, 1.5) == 2816
    assert pair_capacity(32, 512) == 1024


@given(st.integers(1, 64), st.integers(16, 600), st.floats(0, 1), st.floats(1, 8))
def test_slots_are_a_multiple_of_64_or_all_there_are(
    batch: int, seq_len: int, probability: float, length: float
) -> None:
    for capacity in (prediction_capacity(batch, seq_len, probability, length), pair_capacity(batch, seq_len)):
        assert capacity == batch * seq_len or capacity % 64 == 0
        assert 0 < capacity <= batch * seq_len
    assert prediction_capacity(batch, seq_len, 1.0, length) >= batch * (seq_len - 2)


@pytest.mark.parametrize("word", [1, 2, 5])
def test_six_deviations_are_six_of_what_whole_words_do(word: int) -> None:
    # 300 micro-batches of 4 rows of 62 pieces to predict or not, all words of one length.
    words = np.random.default_rng(0).random((300, 4 * 62 // word)) < 0.15
    predicted = words.sum(axis=1) * word
    deviation = np.sqrt(4 * 62 * 0.15 * 0.85 * word)
    assert predicted.std() == pytest.approx(deviation, rel=0.12)  # three deviations of a standard deviation of 300
    assert predicted.max() < prediction_capacity(4, 64, 0.15, word)


@given(st.lists(st.integers(0, 255), max_size=200, unique=True), st.sampled_from([64, 128]))
def test_nothing_is_dropped_and_the_rest_weighs_nothing(slots: list[int], capacity: int) -> None:
    given_slots, labels = np.array(slots, np.int64), np.arange(len(slots))
    filled, filled_labels = fill_slots(given_slots, labels, capacity, 256)
    assert len(filled) == max(capacity, -(-len(slots) // 64) * 64)
    assert filled[: len(slots)].tolist() == slots
    assert (filled[len(slots) :] == 0).all()
    assert (filled_labels[len(slots) :] == -100).all()
    again, again_labels = used_slots(filled, filled_labels)
    assert (again.tolist(), again_labels.tolist()) == (slots, labels.tolist())
