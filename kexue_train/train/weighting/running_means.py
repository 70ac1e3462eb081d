"""The running mean of some numbers of each task over the steps: of its loss, or of the sketch of its gradient."""

from __future__ import annotations

import base64
from typing import Any

import torch
from torch import Tensor

from kexue_train.optim.ranks import sum_over_ranks_


class RunningMeans:
    """Adds up over the micro-batches and ranks of a step, then moves each running mean towards the mean of the step.

        m ← s·m + (1-s)·mean        the first step of a task: m ← mean

    Nothing waits for a device.

    Args:
        tasks: How many.
        width: Numbers of each.
        smoothing: s, in [0, 1]; 1 keeps what the first step of a task has shown.
        dtype: fp32, or fp64.
        device: Where they lie.

    Attributes:
        values: The running means, [tasks, width]; 0 before the first step.
        known: Whether a task has one, bool [tasks].
    """

    def __init__(
        self, tasks: int, width: int, *, smoothing: float, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if not 0 <= smoothing <= 1:
            raise ValueError(f"0 <= smoothing <= 1 is needed, got {smoothing=}")
        self._smoothing = smoothing
        self.values = torch.zeros(tasks, width, dtype=dtype, device=device)
        self.known = torch.zeros(tasks, dtype=torch.bool, device=device)
        # With the number of micro-batches in the last column, so that one reduction takes both.
        self._sums = torch.zeros(tasks, width + 1, dtype=dtype, device=device)
        self._is_open = False

    def add(self, task: int, values: Tensor, *, factor: float = 1.0) -> None:
        """Add what one micro-batch of ``task`` shows, [width], times ``factor``."""
        self._is_open = True
        self._sums[task, :-1].add_(values.detach(), alpha=factor)
        self._sums[task, -1] += 1

    @torch.no_grad()
    def end_step(self) -> None:
        """Move the means of the tasks that this step had, on any rank; a collective call.

        A task whose mean over the step is not finite keeps the one that it has.
        """
        total = sum_over_ranks_(self._sums)
        means = total[:, :-1] / total[:, -1:].clamp_min(1)
        usable = (total[:, -1] > 0) & torch.isfinite(means).all(1)
        moved = self.values + (1 - self._smoothing) * (means - self.values)
        moved = torch.where(self.known[:, None], moved, means)
        self.values = torch.where(usable[:, None], moved, self.values)
        self.known |= usable
        self._sums = torch.zeros_like(total)
        self._is_open = False

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in what JSON keeps exactly; waits for the device. Within a step it is this rank's own."""
        state = {"values": _to_text(self.values), "known": self.known.tolist()}
        return state | ({"sums": _to_text(self._sums)} if self._is_open else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a ``state_dict``.

        Raises:
            ValueError: If it is of another number of tasks or numbers.
        """
        self.known.copy_(torch.tensor(state["known"]))
        self._is_open = "sums" in state
        _from_text(state["values"], self.values)
        self._sums.zero_()
        if self._is_open:
            _from_text(state["sums"], self._sums)


def _to_text(values: Tensor) -> str:
    return base64.b64encode(values.cpu().numpy().tobytes()).decode("ascii")


def _from_text(text: str, into: Tensor) -> None:
    found = torch.frombuffer(bytearray(base64.b64decode(text)), dtype=into.dtype)
    if found.numel() != into.numel():
        raise ValueError(f"the state holds {found.numel()} numbers where {into.numel()} are kept: other tasks")
    into.copy_(found.view(into.shape))
