"""Ranks against sorting by hand, and problems with a known best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.downstream.finetune.sentence_vectors.retrieval import RetrievalProblem, first_ranks
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.task_files import Record
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import make_tokenizer


def slow_rank(row: list[float], label: int, known: list[int]) -> int:
    """Known sentences by falling cosine, those of other classes first among equals; the first right place."""
    order = sorted(range(len(row)), key=lambda t: (-row[t], known[t] == label))
    return next((place for place, t in enumerate(order, 1) if known[t] == label), len(row) + 1)


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=8).flatmap(
        lambda known: st.tuples(
            st.just(known), st.lists(st.integers(-3, 3), min_size=len(known), max_size=len(known)), st.integers(0, 3)
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_the_rank_is_that_of_the_nearest_right_sentence(drawn: tuple[list[int], list[int], int]) -> None:
    known, row, label = drawn
    found = first_ranks(torch.tensor([row]).float(), torch.tensor([label]), torch.tensor(known))
    assert found.tolist() == [slow_rank([float(value) for value in row], label, known)]


def records(lines: list[tuple[str, str]]) -> list[Record]:
    return [Record({"text": text, "label": label}, f"set:{i}") for i, (text, label) in enumerate(lines, 1)]


def problem(tmp_path: Path, dev: list[tuple[str, str]]) -> RetrievalProblem:
    train = records([("abc one", "x"), ("abd two", "x"), ("xyz one", "y"), ("xyw two", "y")])
    splits = Splits(train=train, dev=records(dev), test=None, all_train=train, is_dev_held_out=False)
    return RetrievalProblem(splits, make_tokenizer(tmp_path), 16)


class Vectors:
    """In place of a model: the direction of a sentence's first word."""

    def encode(self, sentences: Any) -> np.ndarray:
        return np.array([[1.0, 0.0] if 5 <= ids[1] < 15 else [0.0, 1.0] for ids in sentences.ids], np.float32)


def test_vectors_that_know_the_class_find_it_and_equal_ones_do_not(tmp_path: Path) -> None:
    found = problem(tmp_path, [("aaa", "x"), ("bbb", "x"), ("zzz", "y"), ("yyy", "x")])
    assert found.score(Vectors(), "dev") == {"accuracy": 0.75, "mrr": pytest.approx((3 + 1 / 3) / 4)}  # type: ignore[arg-type]
    constant = type("Constant", (), {"encode": lambda _, s: np.ones((len(s.ids), 2), np.float32)})()
    assert found.score(constant, "dev") == {"accuracy": 0.0, "mrr": pytest.approx(1 / 3)}


def test_words_find_the_sentence_that_shares_them(tmp_path: Path) -> None:
    assert problem(tmp_path, [("abc", "x"), ("xyz", "y"), ("abd", "x")]).words("dev") == {"accuracy": 1.0, "mrr": 1.0}


def test_a_label_that_is_not_learnt_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="set:2: the label 'z' is in no training record"):
        problem(tmp_path, [("abc", "x"), ("new", "z")])
