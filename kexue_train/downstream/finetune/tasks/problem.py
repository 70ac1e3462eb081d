"""What the harness knows of a task: how its examples are learnt and how they are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from kexue_train.downstream.finetune.bag_of_words import BagOfWordsScore
from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.sequences import Reader

Labels = npt.NDArray[np.int64]
Scores = dict[str, float]
"""Name of a metric -> value from 0 to 1."""


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

    @abstractmethod
    def loss(self, model: Any, indices: Indices) -> Tensor:
        """Return the mean loss of the training examples at ``indices``."""

    @abstractmethod
    def score(self, model: Any, split: str) -> Scores:
        """Return every metric on the split ``dev`` or ``test``; the model is in evaluation mode."""

    def baselines(self) -> dict[str, dict[str, Scores]]:
        """Score what needs no encoder: name of the baseline -> split -> scores."""
        return {}

    def bag_of_words(self) -> BagOfWordsScore | None:
        """Score what is learnt from counts of characters; None where that makes no sense."""
        return None


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
