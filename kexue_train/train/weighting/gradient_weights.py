"""Weights that follow from the Gram matrix of the tasks' gradients, as it was after the step before.

What they can promise they promise of the running means of the gradients, one step late. A task counts as 1 in its
first step. One task alone in a step counts as 1: there is nothing to weigh it against.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kexue_train.train.weighting.scheme import LEAST_WEIGHT, check_state, number_tasks
from kexue_train.train.weighting.task_gradients import TaskGradients

WeightRule = Callable[[Tensor, Tensor, Sequence[str]], Tensor]
"""Called as ``rule(gram, micro_batches, tasks)`` for the n tasks of a step: [n, n], [n] and their names. Returns what a
micro-batch of each counts, [n], at least 0, in any common scale."""


class GradientWeights:
    """A ``TaskWeights``; the host waits for the device once per step.

    Args:
        scheme: Its name.
        tasks: Their names.
        rule: Makes weights of the Gram matrix.
        gradients: Watches the optimizer.
    """

    def __init__(self, scheme: str, tasks: Sequence[str], rule: WeightRule, gradients: TaskGradients) -> None:
        self._scheme, self._tasks, self._numbers = scheme, list(tasks), number_tasks(tasks)
        self._rule, self._gradients = rule, gradients
        self._micro_batches: dict[str, int] = {}
        self._weights: dict[str, float] = {}

    def begin_step(self, micro_batches: Mapping[str, int]) -> None:
        """Decide the weights; over the micro-batches of the step and all ranks they average 1."""
        self._micro_batches = {task: count for task, count in micro_batches.items() if count}
        self._weights = dict.fromkeys(self._micro_batches, 1.0)
        known = [task for task in self._micro_batches if self._gradients.known[self._numbers[task]]]
        if not known:
            return
        places = [self._numbers[task] for task in known]
        counts = torch.tensor([float(self._micro_batches[task]) for task in known], dtype=torch.float64)
        weights = self._rule(self._gradients.gram[places][:, places], counts, known)
        mean = float((counts * weights).sum() / counts.sum())
        for task, weight in zip(known, weights.tolist(), strict=True):
            self._weights[task] = max(weight / mean if mean > 0 else 0.0, LEAST_WEIGHT)

    def weight(self, task: str, loss: Tensor) -> float:  # noqa: ARG002  # only gradients count
        """Return the weight that ``begin_step`` has decided."""
        weight = self._weights[task]
        self._gradients.begin_micro_batch(self._numbers[task], weight)
        return weight

    def end_step(self) -> None:
        """Learn from the gradients of the step; see ``TaskWeights``."""
        self._gradients.end_step()

    def weights(self) -> dict[str, float]:
        """Return the weights of the last step that has begun; waits for nothing."""
        return dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the running sketches and what the open step holds; see ``TaskWeights``."""
        return {
            "scheme": self._scheme,
            "tasks": self._tasks,
            "micro_batches": self._micro_batches,
            "gradients": self._gradients.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; see ``TaskWeights``."""
        check_state(state, scheme=self._scheme, tasks=self._tasks)
        self._gradients.load_state_dict(state["gradients"])
        self.begin_step(state["micro_batches"])
