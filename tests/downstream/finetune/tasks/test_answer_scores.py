"""Exact match and F1 of answers: cases worked out by hand from the official scripts' rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.downstream.finetune.tasks.reading import SCORINGS, answer_scores, run_f1

SHORT = st.lists(st.sampled_from("ab"), max_size=6)


def scores_of(found, *answers, scoring="squad"):
    scores = answer_scores([found], [list(answers)], scoring)
    return scores["f1"], scores["exact_match"]


def test_squad_ignores_case_punctuation_and_articles():
    assert scores_of("The Denver Broncos!", "denver broncos") == (1, 1)
    assert scores_of("an apple", "apple a") == (1, 1)
    assert scores_of("theatre", "atre") == (0, 0)  # "the" only as a word


def test_squad_f1_counts_shared_words():
    # shared: in, 1988; 2 of 3 found words, 2 of 2 right ones: 2·(2/3)·1 / (2/3 + 1) = 0.8
    assert scores_of("summer in 1988", "in 1988") == (pytest.approx(0.8), 0)
    # "to to be" against "to be": "to" is shared once
    assert scores_of("to to be", "to be")[0] == pytest.approx(0.8)
    assert scores_of("yes", "no") == (0, 0)


def test_the_best_of_several_answers_counts():
    assert scores_of("in 1988", "summer", "1988", "in 1988") == (1, 1)
    assert scores_of("", "summer") == (0, 0)


def test_chinese_characters_are_words():
    # shared 北京; 2 of 3 and 2 of 2
    assert scores_of("在北京", "北京", scoring="squad_zh") == (pytest.approx(0.8), 0)
    assert scores_of("《北京》。", "北京", scoring="squad_zh") == (1, 1)
    assert scores_of("NBA 球员", "nba球员", scoring="squad_zh") == (1, 1)
    assert scores_of("nb球员", "nba球员", scoring="squad_zh")[0] == pytest.approx(2 / 3)  # nb and nba are words


def test_order_counts_for_cmrc_alone():
    # 京北 and 北京 share both characters, but only runs of one
    assert scores_of("京北", "北京", scoring="squad_zh")[0] == 1
    assert scores_of("京北", "北京", scoring="cmrc")[0] == pytest.approx(0.5)
    assert scores_of("北京市人", "北京人", scoring="cmrc")[0] == pytest.approx(2 * 2 / 7)
    assert scores_of("“北京”", "北京", scoring="cmrc") == (1, 1)


def test_scores_are_means_over_questions():
    scores = answer_scores(["in 1988", "no"], [["in 1988"], ["yes"]], "squad")
    assert scores == {"f1": 0.5, "exact_match": 0.5}


@given(SHORT, SHORT)
def test_the_shared_run_is_the_longest_of_all(found, answer):
    runs = {tuple(found[i:j]) for i in range(len(found)) for j in range(i + 1, len(found) + 1)}
    shared = max(
        (len(run) for run in runs if any(tuple(answer[k : k + len(run)]) == run for k in range(len(answer)))), default=0
    )
    expected = 2 * shared / (len(found) + len(answer)) if shared else 0
    assert run_f1(found, answer) == pytest.approx(expected)


@given(st.text("ab 北京,。", min_size=1), st.sampled_from(sorted(SCORINGS)))
def test_an_answer_given_word_for_word_is_exact(text, scoring):
    assert answer_scores([text], [[text]], scoring)["exact_match"] == 1
