from __future__ import annotations

import math

from kexue_train.metrics.heads import HEADS, Head


def test_the_keys_of_a_head_follow_from_its_name() -> None:
    head = Head("sop", "SOP", "pairs", "sentence order", num_classes=2)
    assert (head.loss_key, head.accuracy_key) == ("sop_loss", "sop_accuracy")


def test_guessing_among_equal_answers_has_a_known_score_and_among_words_it_has_none() -> None:
    words, pairs = HEADS
    assert (pairs.guessing_accuracy, pairs.guessing_loss) == (0.5, math.log(2))
    assert (words.guessing_accuracy, words.guessing_loss) == (None, None)


def test_names_and_counts_of_heads_are_distinct() -> None:
    assert len({key for head in HEADS for key in (head.loss_key, head.accuracy_key, head.counted)}) == 3 * len(HEADS)
