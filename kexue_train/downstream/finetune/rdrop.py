"""R-Drop: two passes over the same examples with different dropout, which have to agree.

Source: Liang et al., "R-Drop", https://arxiv.org/abs/2106.14448; https://kexue.fm/archives/8496.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kexue_train.downstream.finetune.loop import Indices
from kexue_train.downstream.finetune.losses import symmetric_divergence
from kexue_train.downstream.finetune.tasks.problem import NO_LABEL, Problem, mean_cross_entropy


@dataclass(frozen=True)
class WithRDrop:
    """A problem that is learnt with R-Drop; it is scored as without.

    The loss is ½ (CE₁ + CE₂) + ½ α · mean of ½ (KL(p₁‖p₂) + KL(p₂‖p₁)): half of the paper's sum, so with α = 0 it is a
    loss of the usual size and α means what it means there.
    """

    problem: Problem
    coefficient: float
    """α."""

    @property
    def metric(self) -> str:
        """The metric that chooses the epoch."""
        return self.problem.metric

    @property
    def num_examples(self) -> int:
        """What an epoch goes through."""
        return self.problem.num_examples

    def loss(self, model: Any, indices: Indices) -> Tensor:
        """Return the mean loss of the training examples at ``indices``; gradients flow through both passes.

        Raises:
            EvaluationError: If the problem has no distribution over answers.
        """
        first, second = (self.problem.predict(model, indices) for _ in range(2))
        divergences = [
            symmetric_divergence(one.logits[is_learnt], other.logits[is_learnt]).sum() / is_learnt.sum().clamp(min=1)
            for one, other in zip(first, second, strict=True)
            for is_learnt in [one.labels != NO_LABEL]
        ]
        cross_entropy = (mean_cross_entropy(first) + mean_cross_entropy(second)) / 2
        return cross_entropy + self.coefficient / 2 * torch.stack(divergences).mean()

    def score(self, model: Any, split: str) -> dict[str, float]:
        """Return every metric on the split ``dev`` or ``test``."""
        return self.problem.score(model, split)
