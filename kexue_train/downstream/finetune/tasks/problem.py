"""What the harness knows of a task: how its examples are learnt and how they are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from kexue_train.downstream.finetune.bag_of_words import BagOfWordsScore
from kexue_train.downstream.finetune.loop import Places
from kexue_train.downstream.finetune.tasks.inputs import Reader

Scores = dict[str, float]
"""Name of a metric -> value from 0 to 1."""


@dataclass(frozen=True)
class Problem(ABC):
    """A task in the tokens of one model."""

    auto_class: ClassVar[str]
    """Which models of transformers it needs."""
    metric: ClassVar[str]
    """The metric that chooses the epoch."""

    reader: Reader

    @property
    @abstractmethod
    def num_labels(self) -> int:
        """Outputs of the model's head."""

    @property
    def label_names(self) -> list[str] | None:
        """Of the outputs; None where they have none."""
        return None

    @property
    @abstractmethod
    def num_examples(self) -> int:
        """What an epoch goes through: records, or windows or pieces of them."""

    @abstractmethod
    def loss(self, model: Any, places: Places) -> Tensor:
        """Mean loss of the training examples at ``places``."""

    @abstractmethod
    def score(self, model: Any, split: str) -> Scores:
        """Every metric on the split ``dev`` or ``test``; the model is in evaluation mode."""

    def baselines(self) -> Mapping[str, dict[str, Scores]]:
        """Name of a baseline that needs no encoder -> split -> scores."""
        return {}

    def bag_of_words(self) -> BagOfWordsScore | None:
        """The same, learnt from counts of characters; None where that makes no sense."""
        return None


def accuracy(found: np.ndarray, answers: np.ndarray) -> Scores:
    """Share of equal entries, both (n,)."""
    return {"accuracy": float((found == answers).mean())}
