"""The heads that are trained together: where each finds its labels, how it is scored, and how much it weighs.

The objective, validation, step reports and metrics go through the list; none of them knows a head by name. A new head
has its name in ``metrics/heads.py``, its layer in the model, its labels in ``batches/collate.py``, its weight in
``config.py``, and here an entry that brings them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from kexue_train.batches.collate import PAIR, PREDICTION, Target
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.mixed import TrainingData
from kexue_train.metrics.heads import MLM, NSP, Head
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.linear_cross_entropy import LabelScores, linear_cross_entropy
from kexue_train.samples.mlm import IGNORE_INDEX
from kexue_train.samples.task_kinds import WORDS
from kexue_train.train.config import ObjectiveConfig

# Half a million tokens give the entropy of the words to a hundredth of a nat.
_ROWS_COUNTED = 1024


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """One of the tasks that are learned together."""

    head: Head
    """Its names in metrics."""
    target: Target
    """Its slots and labels in a batch."""
    weight: float
    """Weight of its loss in the total."""
    layer: Callable[[RoFormerV2ForPreTraining], nn.Module]
    """Its layer of the model."""
    score: Callable[[RoFormerV2ForPreTraining, Tensor, Tensor], LabelScores]
    """Scores hidden states [N, E] against labels [N] with its layer: sums, since means cannot be added. All are 0 of no
    states [0, E] and labels [0], but the layer is called."""
    mean_per_row: Callable[[TrainingData], float]
    """Expected number of labels in a row."""
    initial_loss: Callable[[TrainingData], float]
    """Loss of uniform guesses, in nats."""
    prior_loss: Callable[[TrainingData], float]
    """Loss of guesses by frequency alone, in nats; above 0."""
    task: str = WORDS
    """The task that micro-batches are of which have its labels; in each of them all heads of the task are trained."""
    share: float = 1.0
    """Share of the micro-batches that the task has."""


def pretraining_heads(config: ObjectiveConfig) -> tuple[TrainedHead, ...]:
    """Return the heads that pretraining trains, in the order of their sums in metrics; the first is always trained."""
    return (
        TrainedHead(
            head=MLM,
            target=PREDICTION,
            weight=1.0,
            layer=lambda model: model.cls.predictions,
            score=_score_words,
            mean_per_row=lambda dataset: config.masking.total * _maskable_per_row(words_of(dataset)),
            initial_loss=lambda dataset: math.log(dataset.vocab_size),
            prior_loss=lambda dataset: _word_entropy(words_of(dataset)),
        ),
        TrainedHead(
            head=NSP,
            target=PAIR,
            weight=config.nsp_weight,
            layer=lambda model: model.cls.next_sentence,
            score=lambda model, hidden, labels: score_classes(model.cls.next_sentence, hidden, labels),
            mean_per_row=lambda dataset: words_of(dataset).mean_per_row("pairs"),
            initial_loss=lambda _: math.log(2),
            prior_loss=lambda _: math.log(2),
        ),
    )


def words_of(dataset: TrainingData) -> SampleDataset:
    """Return the sample rows among what is read."""
    if isinstance(dataset, SampleDataset):
        return dataset
    if dataset.words is None:
        raise ValueError("masked words are trained, but no sample rows are read")
    return dataset.words


def score_classes(layer: Any, hidden: Tensor, labels: Tensor) -> LabelScores:
    """Score a layer whose outputs are the logits of a few classes."""
    logits = layer(hidden).float()
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return LabelScores(loss, (logits.argmax(-1) == labels).sum().float(), (labels != IGNORE_INDEX).sum().float())


def _score_words(model: RoFormerV2ForPreTraining, hidden: Tensor, labels: Tensor) -> LabelScores:
    """Score the projection onto the vocabulary, whose logits never exist whole."""
    layer: Any = model.cls.predictions
    return linear_cross_entropy(layer.features(hidden), layer.decoder.weight, labels)


def _maskable_per_row(dataset: SampleDataset) -> float:
    tokens, sequences, pairs = map(dataset.mean_per_row, ("real_tokens", "sequences", "pairs"))
    return tokens - 2 * sequences - pairs  # without [CLS] and [SEP]


def _word_entropy(dataset: SampleDataset) -> float:
    """Return the entropy of the pieces of the first rows, special ones aside; 1 for a corpus of one word."""
    rows = np.arange(min(_ROWS_COUNTED, len(dataset)))
    counts = np.bincount(dataset.take(rows)["input_ids"].ravel(), minlength=dataset.vocab_size).astype(np.float64)
    counts[[id_ for name, id_ in dataset.special_token_ids.items() if name != "unk"]] = 0
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum()) or 1.0
