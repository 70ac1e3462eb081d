"""The heads of labelled tasks: a linear layer for each on the encoder's states, as in fine-tuning, and its loss.

The layers are in the model while it trains and in its checkpoints, under ``task_heads``; an exported encoder has none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import assert_never

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from kexue_train.batches.labelled import LabelledDataset, target_of
from kexue_train.batches.mixed import MixedDataset, TrainingData
from kexue_train.metrics.heads import Head
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import TASK_HEADS
from kexue_train.model.linear_cross_entropy import LabelScores
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.heads import TrainedHead, pretraining_heads, score_classes


def heads_of(config: ObjectiveConfig, dataset: TrainingData) -> tuple[TrainedHead, ...]:
    """Return the heads that are trained on ``dataset``: those of pretraining, one for each labelled task, or both."""
    if not isinstance(dataset, MixedDataset):
        return pretraining_heads(config)
    words = pretraining_heads(config) if dataset.words else ()
    tasks = (_task_head(task) for task in dataset.tasks)
    return tuple(replace(head, share=dataset.share_of[head.task]) for head in (*words, *tasks))


def add_task_layers(model: RoFormerV2ForPreTraining, dataset: TrainingData) -> None:
    """Put the layer of every labelled task of ``dataset`` into ``model``, as the model begins any layer."""
    if not isinstance(dataset, MixedDataset):
        return
    layers = nn.Module()
    for task in dataset.tasks:
        layer = nn.Linear(model.config.hidden_size, task.num_outputs)
        model._init_weights(layer)
        layers.add_module(_layer_name(task.name), layer)
    model.add_module(TASK_HEADS, layers)


def _layer_name(task: str) -> str:
    return f"{task}_head"  # no task is called like an attribute of modules


def _layer(task: str, model: RoFormerV2ForPreTraining) -> nn.Module:
    found: nn.Module = getattr(getattr(model, TASK_HEADS), _layer_name(task))
    return found


def _task_head(task: LabelledDataset) -> TrainedHead:
    head = Head(task.name, task.name, f"{task.name}_labels", task.name)
    return TrainedHead(
        head=head,
        target=target_of(task.name),
        weight=1.0,
        layer=partial(_layer, task.name),
        score=partial(_score, task),
        mean_per_row=lambda _: _labels_per_row(task),
        initial_loss=lambda _: _initial_loss(task),
        prior_loss=lambda _: float(task.manifest.statistics.get("prior_loss") or _initial_loss(task)),
        task=task.name,
    )


def _labels_per_row(task: LabelledDataset) -> float:
    """Return what a row adds to the loss: one label, or of tagging one for each token."""
    return task.mean_per_row("labels") if task.kind == "tagging" else 1.0


def _initial_loss(task: LabelledDataset) -> float:
    match task.kind:
        case "classification" | "tagging":
            return math.log(task.num_outputs)
        case "choice":
            return math.log(task.mean_per_row("sequences"))
        case "reading":
            return math.log(task.mean_per_row("tokens"))
        case _:
            assert_never(task.kind)


def _score(task: LabelledDataset, model: RoFormerV2ForPreTraining, hidden: Tensor, labels: Tensor) -> LabelScores:
    """Score the states [N, E] of the task's slots; see ``LabelledDataset`` for ``labels``."""
    layer = _layer(task.name, model)
    hidden = F.dropout(hidden, model.config.hidden_dropout_prob, training=model.training)
    match task.kind:
        case "classification" | "tagging":
            return score_classes(layer, hidden, labels)
        case "choice" | "reading":
            labels = labels.reshape(len(labels), 1 + task.num_outputs)  # none are [0]
            return _score_places(layer(hidden).float(), labels[:, 0], labels[:, 1:])
        case _:
            assert_never(task.kind)


def _score_places(logits: Tensor, examples: Tensor, marks: Tensor) -> LabelScores:
    """Score which of its places each example marks: a softmax over the places of each, for every column.

    Args:
        logits: [N, K], of every place.
        examples: [N], which example it is of; they rise from 0.
        marks: [N, K], 1 at the one right place of each example, else 0.

    Returns:
        Per example the mean of the columns' losses, and whether the largest logits are all at the right places.
    """
    number = int(examples[-1]) + 1 if len(examples) else 0
    index = examples[:, None].expand_as(logits)
    empty = logits.new_full((number, logits.shape[1]), -math.inf)
    largest = empty.scatter_reduce(0, index, logits.detach(), "amax")
    sums = torch.zeros_like(empty).scatter_add(0, index, (logits - largest[examples]).exp())
    right = torch.zeros_like(empty).scatter_add(0, index, logits * marks)
    losses = (largest + sums.log() - right).mean(1)
    correct = (right.detach() >= largest).all(1)
    return LabelScores(losses.sum(), correct.sum().float(), losses.new_tensor(float(number)))
