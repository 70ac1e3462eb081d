"""``generalised-mean``: what is minimised is the γ-mean of the losses, M = (mean L_i^γ)^(1/γ).

    w_i = (L̄_i/M)^(γ-1)        the derivative of n·M, L̄_i the running mean of the task's loss

γ = 1 is the plain sum; γ = 0 the geometric mean, whose weights are those of ``online`` times one number for all tasks;
the larger γ, the more the largest losses count, and the smaller, the more the smallest ones do: the limits are max and
min. Multiplying all losses by one constant changes no weight. Multiplying the loss of one task changes the direction of
the update, unless γ = 0; adding a constant always does. Losses must be above 0.

A task counts as 1 in its first steps, until a running mean of any task is known. As in ``online``, a micro-batch whose
loss is more than 10 times the usual is taken for a larger usual one.

Source: https://kexue.fm/archives/8870.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kexue_train.train.weighting.relative_loss import unit_of
from kexue_train.train.weighting.running_means import RunningMeans
from kexue_train.train.weighting.scheme import check_state, number_tasks

_SCHEME = "generalised-mean"


class GeneralisedMean:
    """A ``TaskWeights`` that waits for no device.

    Args:
        tasks: Their names.
        gamma: γ, finite.
        smoothing: Of the running means.
        device: Where losses lie.

    Raises:
        ValueError: If γ is not finite.
    """

    def __init__(self, tasks: Sequence[str], *, gamma: float, smoothing: float, device: torch.device | str) -> None:
        if not math.isfinite(gamma):
            raise ValueError(f"gamma must be finite, got {gamma}; for the largest or smallest loss take gamma=±20")
        self._tasks, self._numbers, self._gamma = list(tasks), number_tasks(tasks), gamma
        self._means = RunningMeans(len(tasks), 1, smoothing=smoothing, dtype=torch.float64, device=device)
        self._log_mean = self._compute_log_mean()

    def begin_step(self, micro_batches: Mapping[str, int]) -> None:
        """Check the names; see ``TaskWeights``."""
        for task in micro_batches:
            self._numbers[task]

    def weight(self, task: str, loss: Tensor) -> Tensor:
        """Return (L̄/M)^(γ-1), a 0-dim fp32 tensor, and note the loss."""
        number, value = self._numbers[task], loss.detach().double()
        self._means.add(number, value.view(1))
        unit = unit_of(value, self._means.values[number, 0], self._means.known[number])
        log_ratio = torch.where(self._means.known.any(), unit.log() - self._log_mean, 0.0)
        return ((self._gamma - 1) * log_ratio).exp().float()

    def end_step(self) -> None:
        """Move the running means; see ``TaskWeights``."""
        self._means.end_step()
        self._log_mean = self._compute_log_mean()

    def weights(self) -> dict[str, float]:
        """Return (L̄/M)^(γ-1) of the tasks that were met; waits for the device."""
        pairs = zip(self._tasks, self._means.values[:, 0].tolist(), self._means.known.tolist(), strict=True)
        log_mean = float(self._log_mean)
        return {
            task: math.exp((self._gamma - 1) * (math.log(mean) - log_mean))
            for task, mean, known in pairs
            if known and mean > 0
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the running means; see ``TaskWeights``."""
        return {"scheme": _SCHEME, "tasks": self._tasks, "losses": self._means.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; see ``TaskWeights``."""
        check_state(state, scheme=_SCHEME, tasks=self._tasks)
        self._means.load_state_dict(state["losses"])
        self._log_mean = self._compute_log_mean()

    def _compute_log_mean(self) -> Tensor:
        """Return log M over the tasks that are known and above 0; 0-dim."""
        means = self._means.values[:, 0]
        counted = self._means.known & (means > 0)
        logs, count = means.where(counted, 1.0).log(), counted.sum().clamp_min(1)
        if self._gamma == 0:
            return logs.sum() / count  # tasks that do not count add log 1
        powers = (self._gamma * logs).where(counted, -torch.inf)
        log_sum = torch.where(counted.any(), powers.logsumexp(0), 0.0)
        return (log_sum - count.log()) / self._gamma
