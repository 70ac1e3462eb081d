"""``prior``: a loss counts in units of what it costs to guess; ``equal``: every loss counts as it is.

    w_i = 1/U_i        U_i the loss of guessing by the frequencies of the labels alone, their entropy

A task with K classes of equal frequency has U = log K, a loss of 1 in its unit before training. Nothing is measured:
scaling a loss changes the update, unless its unit is scaled alike.

Source: https://kexue.fm/archives/8870.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from kexue_train.train.weighting.scheme import check_state, number_tasks


class ConstantUnits:
    """A ``TaskWeights`` that never changes and has no state.

    Args:
        scheme: Its name.
        units: The unit of each task, above 0.

    Raises:
        ValueError: If a unit is not.
    """

    def __init__(self, scheme: str, units: Mapping[str, float]) -> None:
        self._scheme, self._tasks = scheme, list(units)
        number_tasks(self._tasks)
        for task, unit in units.items():
            if not (math.isfinite(unit) and unit > 0):
                raise ValueError(
                    f"task {task}: a loss is divided by that of guessing, which must be above 0, got {unit}; a task "
                    "with one label only teaches nothing, leave it out"
                )
        self._weights = {task: 1 / unit for task, unit in units.items()}

    def begin_step(self, micro_batches: Mapping[str, int]) -> None:
        """Check the names; see ``TaskWeights``."""
        for task in micro_batches:
            self._weights[task]

    def weight(self, task: str, loss: Tensor) -> float:  # noqa: ARG002  # the same for all losses
        """Return 1/U."""
        return self._weights[task]

    def end_step(self) -> None:
        """Do nothing."""

    def weights(self) -> dict[str, float]:
        """Return 1/U of every task."""
        return dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the scheme and the tasks."""
        return {"scheme": self._scheme, "tasks": self._tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check the scheme and the tasks; see ``TaskWeights``."""
        check_state(state, scheme=self._scheme, tasks=self._tasks)


def guessing_loss(label_counts: Sequence[float]) -> float:
    """Return the loss of guessing by frequency alone, in nats: -Σ p log p of the shares p of the labels.

    Args:
        label_counts: How often each label occurs, at least 0, not all 0.

    Raises:
        ValueError: If no label occurs.
    """
    total = sum(label_counts)
    if not total > 0:
        raise ValueError("no label occurs, so there is nothing to guess by; check the task's data")
    shares = [count / total for count in label_counts if count]
    return sum(-share * math.log(share) for share in shares)
