"""A mix of one task is plain fine-tuning: on the same rows the loss of the stage is that of ``kexue finetune task``.

The oracle is the model with the head of its kind, on padded rows with an attention mask, as fine-tuning computes it.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from kexue_train.batches.collate import Target
from kexue_train.downstream.finetune.harness import make_problem
from kexue_train.downstream.sequences import Reader
from kexue_train.model import modeling_roformer_v2
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.model.modeling_roformer_v2 import RoFormerV2ForPreTraining
from kexue_train.supervised.label_rows import examples_of
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.data import to_tensors
from kexue_train.train.objective import PretrainingObjective
from kexue_train.train.task_heads import add_task_layers, heads_of
from tests.supervised.tiny_tasks import KINDS, open_mix, tasks_of
from tests.train.tiny_training import MODEL, SEQ_LEN

FINE_TUNED = {
    "sorted": "RoFormerV2ForSequenceClassification",
    "marked": "RoFormerV2ForTokenClassification",
    "asked": "RoFormerV2ForQuestionAnswering",
    "chosen": "RoFormerV2ForMultipleChoice",
}


@pytest.fixture(scope="module")
def data(mix):
    return open_mix(mix)


@pytest.fixture(scope="module")
def objective(data):
    torch.manual_seed(0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = RoFormerV2ForPreTraining(build_hf_config(ModelConfig(**MODEL, **dropout), data.vocab_size))
    add_task_layers(model, data)
    objective = PretrainingObjective(model, heads_of(ObjectiveConfig(), data))
    objective.scale_to(data, 6)
    return objective


def problem_of(name, tasks, samples):
    task = tasks_of(tasks)[name]
    reader = Reader(AutoTokenizer.from_pretrained(str(samples / "tokenizer")), SEQ_LEN)
    return task, make_problem(task, tasks, reader)[0]


def fine_tuned_model(name, objective, problem):
    """The model that fine-tuning would train, with the weights of the stage."""
    config = objective.model.config
    config.num_labels = problem.num_labels
    model = getattr(modeling_roformer_v2, FINE_TUNED[name])(config)
    model.roformer.load_state_dict(objective.model.roformer.state_dict())
    layer = getattr(model, "qa_outputs" if name == "asked" else "classifier")
    layer.load_state_dict(getattr(objective.model.task_heads, f"{name}_head").state_dict())
    return model


def rows_of(task, examples):
    """The rows of a task that hold these examples, in this order."""
    wanted = [np.concatenate(example.sequences).tolist() for example in examples]
    columns = task._columns
    row_of = {}
    for row in range(task.manifest.rows):
        row_of.setdefault(tuple(columns["input_ids"].take(np.array([row]))[0].tolist()), row)
    return np.array([row_of[tuple(ids)] for ids in wanted])


@pytest.mark.parametrize("name", KINDS)
def test_losses_of_the_same_rows_are_equal(name, data, objective, tasks, samples):
    task, problem = problem_of(name, tasks, samples)
    labelled = next(found for found in data.tasks if found.name == name)
    indices = np.array([0, 5, 6, 11, 17, 20])
    examples = examples_of(name, task, problem).train
    model = fine_tuned_model(name, objective, problem)
    expected = problem.loss(model, indices)
    batch = to_tensors(labelled.make_batch(rows_of(labelled, [examples[index] for index in indices])))
    loss, sums = objective(batch)
    number = [head.task for head in objective.heads].index(name)
    assert sums[number, 0] / sums[number, 2] == pytest.approx(expected.item(), rel=2e-6)
    assert torch.equal(sums[[n for n in range(len(sums)) if n != number]], torch.zeros(len(sums) - 1, 3))
    expected.backward()
    objective.zero_grad()
    (loss * objective.expected[number] / sums[number, 2]).backward()
    for found, wanted in zip(objective.model.roformer.parameters(), model.roformer.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", KINDS)
def test_right_answers_are_counted(name, data, objective):
    """Against the scores of each example alone, with the logits taken apart by hand."""
    labelled = next(found for found in data.tasks if found.name == name)
    number = [head.task for head in objective.heads].index(name)
    rows = np.arange(8)
    together = objective(to_tensors(labelled.make_batch(rows)))[1][number]
    alone = [objective(to_tensors(labelled.make_batch(rows[row : row + 1])))[1][number] for row in rows]
    assert torch.allclose(together, torch.stack(alone).sum(0), rtol=1e-5)
    assert 0 <= together[1] <= together[2]


def test_a_batch_without_labels_moves_nothing(data, objective):
    task = data.tasks[0]
    batch = to_tensors(task.make_batch(np.arange(2)))
    target = Target(f"{task.name}_slots", f"{task.name}_labels")
    loss, sums = objective({name: batch[name] for name in batch.keys() - set(target)})
    assert loss == 0
    assert not sums.any()
