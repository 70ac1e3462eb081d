"""``online``: a loss counts in units of its own running mean; ``initial``: in units of its mean at the first step.

    w_i = 1/L̄_i        L̄_i the running mean of the task's loss over the steps before this one

With ``online`` the gradient is that of log L_i where L_i = L̄_i, so the update goes where the geometric mean of the
losses falls. In the first step of a task its unit is the loss itself, micro-batch by micro-batch.

Multiplying a loss by a constant changes no update, adding one does. Losses must be above 0, as cross-entropies are.

A loss counts for at most 10 units. Else a task that is learnt, whose running mean is nearly 0, would throw the model
far off by one wrong label.

Source: https://kexue.fm/archives/8870.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kexue_train.train.weighting.running_means import RunningMeans
from kexue_train.train.weighting.scheme import check_state, number_tasks

MOST_UNITS = 10.0
"""For how many units a loss counts at most."""


class RelativeLoss:
    """A ``TaskWeights`` that waits for no device.

    Args:
        scheme: Its name.
        tasks: Their names.
        smoothing: Of the running mean; 1 keeps the mean of the first step, as ``initial`` does.
        device: Where losses lie.
    """

    def __init__(self, scheme: str, tasks: Sequence[str], *, smoothing: float, device: torch.device | str) -> None:
        self._scheme, self._tasks, self._numbers = scheme, list(tasks), number_tasks(tasks)
        self._means = RunningMeans(len(tasks), 1, smoothing=smoothing, dtype=torch.float64, device=device)

    def begin_step(self, micro_batches: Mapping[str, int]) -> None:
        """Check the names; see ``TaskWeights``."""
        for task in micro_batches:
            self._numbers[task]

    def weight(self, task: str, loss: Tensor) -> Tensor:
        """Return 1/L̄, a 0-dim fp32 tensor, and note the loss."""
        number, value = self._numbers[task], loss.detach().double()
        self._means.add(number, value.view(1))
        unit = unit_of(value, self._means.values[number, 0], self._means.known[number])
        return (1 / unit).float()

    def end_step(self) -> None:
        """Move the running means; see ``TaskWeights``."""
        self._means.end_step()

    def weights(self) -> dict[str, float]:
        """Return 1/L̄ of the tasks that were met; waits for the device."""
        pairs = zip(self._tasks, self._means.values[:, 0].tolist(), self._means.known.tolist(), strict=True)
        return {task: 1 / mean for task, mean, known in pairs if known and mean > 0}

    def state_dict(self) -> dict[str, Any]:
        """Return the running means; see ``TaskWeights``."""
        return {"scheme": self._scheme, "tasks": self._tasks, "losses": self._means.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; see ``TaskWeights``."""
        check_state(state, scheme=self._scheme, tasks=self._tasks)
        self._means.load_state_dict(state["losses"])


def unit_of(loss: Tensor, mean: Tensor, known: Tensor) -> Tensor:
    """Return what a loss is measured in: its running mean if that is known, and at least a tenth of itself.

    A loss of 0 beside a mean of 0 counts as 0 in any unit; the unit is then 1.
    """
    unit = torch.where(known, torch.maximum(mean, loss / MOST_UNITS), loss)
    return torch.where(unit > 0, unit, 1.0)
