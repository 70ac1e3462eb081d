"""Graded pairs read together."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kexue_train.downstream.finetune.harness import finetune_tasks, make_problem
from kexue_train.downstream.finetune.tasks.task import KINDS
from kexue_train.downstream.load_model import load_encoder
from kexue_train.downstream.sequences import Reader
from kexue_train.downstream.settings import HarnessSettings
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.finetune.tasks.tiny_tasks import LETTERS, letters, make_encoder, make_files, write_records


def graded_pair(random):
    """The more x in the second text, the more alike, whatever the first one says."""
    number = int(random.integers(0, 4))
    second = ["x"] * number + letters(random, 4 - number, LETTERS)
    return {"text_a": " ".join(letters(random, 2)), "text_b": " ".join(second), "score": number / 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("similarity")
    make_encoder(root / "model")
    make_files(root / "graded", graded_pair, train=160, dev=40, test=60)
    write_records(root / "same" / "train.jsonl", [{"text_a": "a", "text_b": f"b {i}", "score": 3} for i in range(9)])
    lacking = [{"text_a": "a", "text_b": "b", "score": 1}, {"text_a": "a", "text_b": "c"}]
    write_records(root / "lacking" / "train.jsonl", lacking)
    write_records(root / "words" / "train.jsonl", [{**lacking[0], "score": "much"}, lacking[0]])
    return root


def task(name, **files):
    files = files or {split: f"{name}/{split}.jsonl" for split in ("train", "dev", "test")}
    return KINDS["similarity"].parse({"title": name, "kind": "similarity", **files}, where="test")


def reader(folder):
    return Reader(load_encoder(folder / "model").tokenizer, 32)


def test_the_loss_sums_over_all_pairs_of_pairs_in_the_wrong_order(folder):
    """log(1 + Σ exp(f_l - f_m)) over score_m > score_l, term by term, for a model that answers with given numbers."""
    problem, _ = make_problem(task("graded"), folder, reader(folder))
    numbers = np.random.default_rng(0).normal(size=7)
    places = np.arange(3, 10)

    def model(**inputs):
        assert len(inputs["input_ids"]) == 7
        assert (inputs["token_type_ids"].sum(1) == 5).all()  # the second text and its [SEP]
        return SimpleNamespace(logits=torch.tensor(numbers[:, None]))

    model.device = torch.device("cpu")
    scores = problem.graded["train"][places]
    total = sum(
        np.exp(numbers[low] - numbers[high]) for low in range(7) for high in range(7) if scores[high] > scores[low]
    )
    assert problem.loss(model, places).item() == pytest.approx(np.log1p(total), rel=1e-5)


def run(folder, tasks, **values):
    values = {"seeds": 1, "epochs": 6, "batch_size": 16, "lr": 5e-2, "random_encoder": False, **values}
    return finetune_tasks(folder / "model", folder, tasks, HarnessSettings.parse(values, where="test"))


def test_the_order_is_learnt_and_shown_beside_words(folder):
    results = run(folder, {"graded": task("graded")})
    [result] = results.tasks
    assert result.failures == []
    [encoder] = result.encoders
    assert encoder.scores["test"]["spearman"].mean > 0.9
    assert [baseline.name for baseline in result.baselines] == ["bag_of_words"]
    assert abs(result.baselines[0].scores["test"]["spearman"]) < 0.5
    assert result.row[3] == "spearman"
    [score] = results.scores()
    assert (score.task_type, score.metric) == ("sentence-similarity", "spearman")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("same", "all 9 pairs of train have the score 3, so there is no order"),
        ("lacking", "lacking/train.jsonl:2: no value 'score'"),
        ("words", "'score' is 'much'; expected a number"),
    ],
)
def test_pairs_that_teach_no_order_are_refused(folder, name, words):
    with pytest.raises(EvaluationError, match=words):
        make_problem(task(name, train=f"{name}/train.jsonl", dev=f"{name}/train.jsonl"), folder, reader(folder))


def test_rdrop_is_refused_since_there_is_no_distribution(folder):
    [result] = run(folder, {"graded": task("graded")}, epochs=1, dropout=0.1, rdrop=1.0, max_train=20).tasks
    [failure] = result.failures
    assert "similarity has none; leave out --rdrop" in failure.error
