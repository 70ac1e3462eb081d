"""What the harness knows of a task: how its examples are learnt and how they are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.sequences import Reader

Labels = npt.NDArray[np.int64]
Scores = dict[str, float]
"""Name of a metric -> value from 0 to 1 (Spearman correlations from -1)."""
NO_LABEL = -100


class Predictions(NamedTuple):
    """What a model says where there is a right answer."""

    logits: Tensor
    """(N, C) fp32, -inf where an answer is not possible."""
    labels: Tensor
    """(N,) right answers; ``NO_LABEL`` where there is none."""


class WordScores(NamedTuple):
    """What counts of words or characters are worth, without an encoder."""

    scores: dict[str, Scores]
    """Split -> scores."""
    penalty: float | None = None
    """Penalty of the weights, if some were learnt."""


@dataclass(frozen=True, kw_only=True)
class Problem(ABC):
    """A task in the tokens of one model."""

    auto_class: ClassVar[str]
    """Which models of transformers it needs."""
    metric: ClassVar[str]
    """The metric that chooses the epoch."""

    reader: Reader
    num_labels: int
    """Outputs of the model's head."""
    num_examples: int
    """What an epoch goes through: records, or windows or pieces of them."""
    label_names: list[str] = field(default_factory=list)
    """Names of the outputs; empty where they have none."""

    def loss(self, model: Any, indices: Indices) -> Tensor:
        """Return the mean loss of the training examples at ``indices``."""
        return mean_cross_entropy(self.predict(model, indices))

    @abstractmethod
    def predict(self, model: Any, indices: Indices) -> list[Predictions]:
        """Return what the model says to the training examples at ``indices``, one entry per output.

        Raises:
            EvaluationError: If the problem has no distribution over answers.
        """

    @abstractmethod
    def score(self, model: Any, split: str) -> Scores:
        """Return every metric on the split ``dev`` or ``test``; the model is in evaluation mode."""

    def baselines(self) -> dict[str, dict[str, Scores]]:
        """Score what needs no encoder: name of the baseline -> split -> scores."""
        return {}

    def bag_of_words(self) -> WordScores | None:
        """Score what counts of words or characters tell; None where that makes no sense."""
        return None


def mean_cross_entropy(predictions: Sequence[Predictions]) -> Tensor:
    """Return the mean over outputs of the mean cross-entropy of all answers that are there; 0 without any."""
    losses = [
        F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction="sum")
        / (labels != NO_LABEL).sum().clamp(min=1)
        for logits, labels in predictions
    ]
    return sum(losses[1:], losses[0]) / len(losses)


def guessing_baselines(labels: Mapping[str, Labels], chances: Mapping[str, float]) -> dict[str, dict[str, Scores]]:
    """Score guessing, and always the label that is most frequent in training.

    Args:
        labels: Split -> right labels (n,).
        chances: Scored split -> expected accuracy of guessing.
    """
    frequent = np.bincount(labels["train"]).argmax()
    return {
        "chance": {split: {"accuracy": chance} for split, chance in chances.items()},
        "majority": {split: accuracy(np.full_like(labels[split], frequent), labels[split]) for split in chances},
    }


def accuracy(found: np.ndarray, answers: np.ndarray) -> Scores:
    """Return the share of equal entries, both (n,)."""
    return {"accuracy": float((found == answers).mean())}
