"""R-Drop against its formula, on a classifier whose two passes are known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from kexue_train.downstream.finetune.dropout import dropout_settings, require_dropout
from kexue_train.downstream.finetune.harness import finetune_tasks
from kexue_train.downstream.finetune.losses import symmetric_divergence
from kexue_train.downstream.finetune.rdrop import WithRDrop
from kexue_train.downstream.finetune.tasks.problem import NO_LABEL, Predictions, mean_cross_entropy
from kexue_train.downstream.finetune.tasks.task import KINDS
from kexue_train.downstream.settings import HarnessSettings
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.evaluate.zero_shot.tiny_models import make_bert
from tests.downstream.finetune.tasks.tiny_tasks import (
    choice_of_options,
    make_files,
    question_with_an_answer,
    text_with_a_label,
    text_with_entities,
)

FORMS = {
    "label": (text_with_a_label, "classification", {}),
    "entities": (text_with_entities, "tagging", {"tokens": "tokens", "joined_by": " "}),
    "answer": (question_with_an_answer, "reading", {}),
    "option": (choice_of_options, "choice", {}),
}


class TwoPasses:
    """In place of a problem: one output for the first pass, another for the second."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor, labels: torch.Tensor) -> None:
        self.passes = iter([first, second])
        self.labels = labels

    def predict(self, _model: object, _indices: object) -> list[Predictions]:
        return [Predictions(next(self.passes), self.labels)]


def probabilities(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(1, keepdims=True)


def slow_rdrop(first: np.ndarray, second: np.ndarray, labels: np.ndarray, coefficient: float) -> float:
    """Half of the paper's (CE₁ + CE₂) + α ½ (KL(p‖q) + KL(q‖p)), mean over rows, sum over answers that are possible."""
    p, q = probabilities(first), probabilities(second)
    total = 0.0
    for row, label in enumerate(labels):
        total -= np.log(p[row, label]) + np.log(q[row, label])
        for a, b in zip(p[row], q[row], strict=True):
            if a > 0:
                total += coefficient / 2 * (a * np.log(a / b) + b * np.log(b / a))
    return total / 2 / len(labels)


@pytest.mark.parametrize("coefficient", [0.5, 4.0])
def test_the_loss_is_its_formula_and_both_passes_learn(coefficient):
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 6, 5))
    first[:, 4] = second[:, 4] = -np.inf  # an option that is not there
    labels = random.integers(0, 4, 6)
    passes = [torch.tensor(logits, requires_grad=True) for logits in (first, second)]
    loss = WithRDrop(TwoPasses(*passes, torch.tensor(labels)), coefficient).loss(None, None)
    assert loss.item() == pytest.approx(slow_rdrop(first, second, labels, coefficient), rel=1e-12)
    loss.backward()
    for logits in passes:
        assert torch.isfinite(logits.grad).all()
        assert (logits.grad[:, :4] != 0).all()


def test_rows_without_a_label_count_for_nothing():
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 3, generator=random)
    labels = torch.tensor([0, NO_LABEL, 2, NO_LABEL])
    found = WithRDrop(TwoPasses(first, second, labels), 4.0).loss(None, None)
    kept = labels != NO_LABEL
    alone = WithRDrop(TwoPasses(first[kept], second[kept], labels[kept]), 4.0).loss(None, None)
    assert found.item() == pytest.approx(alone.item(), rel=1e-6)
    nothing = mean_cross_entropy([Predictions(first, torch.full((4,), NO_LABEL))])
    assert nothing.item() == 0


def test_equal_passes_do_not_diverge():
    logits = torch.tensor([[0.5, -1.0, -torch.inf], [3.0, -torch.inf, 0.0]])
    assert torch.equal(symmetric_divergence(logits, logits), torch.zeros(2))


def test_dropout_is_found_and_required():
    config = SimpleNamespace(attention_probs_dropout_prob=0.0)
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
    model.config = config
    with pytest.raises(EvaluationError, match=r"--rdrop compares two passes.*--dropout 0\.1"):
        require_dropout(model, "--rdrop")
    model[1].p = 0.1
    require_dropout(model, "--rdrop")
    model[1].p, config.attention_probs_dropout_prob = 0.0, 0.1
    require_dropout(model, "--rdrop")


def test_only_a_dropout_that_the_model_knows_is_set(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_dropout_prob": 0.0, "model_type": "x"}')
    assert dropout_settings(tmp_path, None) == {}
    assert dropout_settings(tmp_path, 0.2) == {"hidden_dropout_prob": 0.2}
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    with pytest.raises(EvaluationError, match="names no dropout"):
        dropout_settings(tmp_path, 0.2)
    with pytest.raises(EvaluationError, match="cannot be read"):
        dropout_settings(tmp_path / "nowhere", 0.2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("rdrop")
    sizes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1}
    make_bert(root / "model", "BertModel", **sizes)
    for name, (make, _, _) in FORMS.items():
        make_files(root / name, make, train=12, dev=6)
    return root


def finetune(folder, **values):
    tasks = {
        name: KINDS[kind].parse(
            {"title": name, "kind": kind, "train": f"{name}/train.jsonl", "dev": f"{name}/dev.jsonl", **own},
            where="test",
        )
        for name, (_, kind, own) in FORMS.items()
    }
    values = {"seeds": 1, "epochs": 1, "batch_size": 6, "lr": 1e-2, "random_encoder": False, **values}
    return finetune_tasks(folder / "model", folder, tasks, HarnessSettings.parse(values, where="test")).tasks


def losses(results):
    assert not [failure for result in results for failure in result.failures]
    return [result.encoders[0].runs[0].losses for result in results]


def test_every_task_with_answers_learns_with_it_and_repeats(folder):
    plain = losses(finetune(folder, dropout=0.1))
    results = finetune(folder, dropout=0.1, rdrop=4.0)
    assert losses(results) == losses(finetune(folder, dropout=0.1, rdrop=4.0))
    assert all(with_rdrop != without for with_rdrop, without in zip(losses(results), plain, strict=True))
    assert {(result.rdrop, result.fit.dropout) for result in results} == {(4.0, 0.1)}


def test_a_model_without_dropout_is_refused(folder):
    with pytest.raises(EvaluationError, match="--rdrop compares two passes"):
        finetune(folder, rdrop=4.0)
