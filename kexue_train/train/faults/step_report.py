"""What the ranks tell each other after every step: its loss, and whether any of them was asked to stop.

Nobody waits for it. Device -> host -> all ranks is a pipeline two steps long: while step t runs, the sums of step t - 1
are copied to the host and those of step t - 2 added up over the ranks by gloo, in threads of their own. What arrives is
the same on every rank after the same step, so what follows from it is, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.train.objective import NUM_SUMS, Heads, mean_scores, task_losses, total_loss


class StepReport(NamedTuple):
    """What all ranks together said."""

    step: int
    """The step that ``loss`` is of; 0: of none, this report is the first."""
    loss: float | None
    """Weighted loss of all heads over the global batch, in nats; None if no word of it was predicted."""
    asked: bool
    """Whether any rank was asked to stop."""
    drained: bool
    """Whether the machine of any rank is about to be taken away."""
    losses: Mapping[str, float] = MappingProxyType({})
    """The loss of each task that had a label, in nats."""


class _Copy(NamedTuple):
    step: int
    sums: Tensor
    """On the host, once ``ready`` has happened."""
    ready: torch.cuda.Event | None


class _Sent(NamedTuple):
    step: int
    values: Tensor
    work: dist.Work | None


class StepReports:
    """The pipeline; every rank calls the same methods after the same steps.

    Args:
        heads: The heads whose losses are told.
        timeout: How long to wait for a rank.
    """

    def __init__(self, heads: Heads, timeout: timedelta) -> None:
        self._heads = heads
        # A group of its own on the host: neither behind the tensors of the training nor on their device.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if dist.get_world_size() > 1 else None
        self._copy = _Copy(0, torch.zeros(len(self._heads), NUM_SUMS), None)
        self._sent: _Sent | None = None

    def add(self, step: int, sums: Tensor, *, asked: bool, drained: bool) -> list[StepReport]:
        """Hand in this rank's ``LabelScores`` of a step, [heads, 3]; return what has arrived, at most one report."""
        arrived = self._arrive()
        self._send(asked, drained)
        self._copy = _to_host(step, sums)
        return arrived

    def drain(self, *, asked: bool, drained: bool) -> list[StepReport]:
        """Everything up to the last step handed in; waits for it."""
        reports = self._arrive()
        self._send(asked, drained)
        self._copy = _Copy(0, torch.zeros(len(self._heads), NUM_SUMS), None)
        return reports + self._arrive()

    def close(self) -> None:
        """Take what is under way, so that no thread of gloo is left with it."""
        self._arrive()

    def _send(self, asked: bool, drained: bool) -> None:
        if self._copy.ready is not None:
            self._copy.ready.synchronize()
        values = torch.cat([self._copy.sums.double().flatten(), torch.tensor([asked, drained], dtype=torch.float64)])
        work = dist.all_reduce(values, group=self._group, async_op=True) if self._group else None
        self._sent = _Sent(self._copy.step, values, work)

    def _arrive(self) -> list[StepReport]:
        if self._sent is None:
            return []
        step, values, work = self._sent
        self._sent = None
        if work is not None:
            work.wait()
        asked, drained = values[-2:].tolist()
        scores = mean_scores(values[:-2].view(-1, NUM_SUMS).tolist(), self._heads)
        losses = task_losses(scores, self._heads)
        return [StepReport(step, total_loss(scores, self._heads), asked > 0, drained > 0, losses)]


def _to_host(step: int, sums: Tensor) -> _Copy:
    if sums.device.type != "cuda":
        return _Copy(step, sums, None)
    host = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
    host.copy_(sums, non_blocking=True)
    ready = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    ready.record()
    return _Copy(step, host, ready)
