"""What follows from a spike of the loss: the training goes back to a checkpoint and skips the rows it has read since.

A spike is never saved: all losses up to a checkpoint are judged before it is written. So the newest checkpoint lies
before the spike, and a training that goes back to it and skips those rows is the training of a model that has never
seen them (as PaLM was trained, https://arxiv.org/abs/2204.02311, section 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

from kexue_train.foundation.errors import TrainingError
from kexue_train.train.phases import Phase


class Spike(Exception):  # noqa: N818  # no error of anybody
    """The loss of ``step`` is a spike; every rank raises it after the same step."""

    def __init__(self, step: int, loss: float, usual: float | None) -> None:
        before = f"; the median of the steps before is {usual:.3f}" if usual is not None else ""
        super().__init__(f"step {step}: the loss is {loss:.3f}{before}")
        self.step, self.loss, self.usual = step, loss, usual

    @property
    def facts(self) -> dict[str, float | str | None]:
        """For a line of metrics; JSON has no NaN."""
        return {
            "spike_step": self.step,
            "loss": self.loss if math.isfinite(self.loss) else str(self.loss),
            "usual": self.usual,
        }


class EndedBySpikeError(TrainingError):
    """The training has ended because of the loss of ``step``."""

    def __init__(self, message: str, step: int, loss: float) -> None:
        super().__init__(message)
        self.step, self.loss = step, loss

    def __reduce__(self) -> tuple[type[Self], tuple[str, int, float]]:
        """Survive the way back from a worker process with all arguments."""
        return type(self), (str(self), self.step, self.loss)


class SkippedRows(NamedTuple):
    """Rows that are never trained on, since the training went back to the checkpoint ``after_step``."""

    after_step: int
    seq_len: int
    """Of the samples that they are skipped in."""
    rows: int


def skipped_between(phases: Sequence[Phase], checkpoint_step: int, spike_step: int) -> tuple[SkippedRows, ...]:
    """Return what was read after the checkpoint up to the spike, of the samples of each length."""
    rows: dict[int, int] = {}
    for phase in phases:
        steps = min(spike_step, phase.end) - max(checkpoint_step, phase.first_step)
        if steps > 0:
            rows[phase.seq_len] = rows.get(phase.seq_len, 0) + steps * phase.global_batch_size
    return tuple(SkippedRows(checkpoint_step, seq_len, number) for seq_len, number in rows.items())


def count_skipped_rows(skipped: Iterable[SkippedRows], seq_len: int) -> int:
    """Count the rows of the samples of this length that a training has skipped up to now."""
    return sum(entry.rows for entry in skipped if entry.seq_len == seq_len)
