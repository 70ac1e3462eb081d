"""When a loss is a spike, and which rows are left out after one.

A spike is never saved: all losses up to a checkpoint are judged before it is written. So the newest checkpoint lies
before the spike, and a training that goes back to it and leaves out the rows that it had read since is the training of
those who had never seen them (as PaLM was trained, https://arxiv.org/abs/2204.02311, section 5.1).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

from kexue_train.train.phases import Phase

_WINDOW = 64
_ENOUGH = 16
_DEVIATIONS = 10.0
_LEAST_RISE = 0.1
_NORMAL = 1.4826
"""Standard deviations per median absolute deviation, of a normal distribution."""


class Spike(Exception):  # noqa: N818  # no error of anybody
    """The loss of ``step`` is one; every rank raises it after the same step."""

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


class SpikeDetector:
    """Compares each loss with the 64 before it that were no spikes.

    A spike is not finite, or higher than their median by more than 10 standard deviations (estimated by the median
    absolute deviation, on which a few outliers have no influence) and by more than a tenth. The first 16 losses are
    only looked at for being finite.

    Args:
        losses: What an earlier detector remembered.
    """

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses = deque(losses, maxlen=_WINDOW)

    @property
    def remembered(self) -> tuple[float, ...]:
        """All that the next decision depends on."""
        return tuple(self._losses)

    @property
    def usual(self) -> float | None:
        """The median of the losses remembered."""
        return median(self._losses) if self._losses else None

    def is_spike(self, loss: float) -> bool:
        """Judge the loss of the next step, in nats; it is remembered unless it is a spike."""
        if not math.isfinite(loss) or (len(self._losses) >= _ENOUGH and loss > self._highest()):
            return True
        self._losses.append(loss)
        return False

    def forget(self) -> None:
        """What comes next is not to be compared with what came before."""
        self._losses.clear()

    def _highest(self) -> float:
        usual = median(self._losses)
        deviation = _NORMAL * median(abs(loss - usual) for loss in self._losses)
        return usual + max(_DEVIATIONS * deviation, _LEAST_RISE * abs(usual))


class LeftOut(NamedTuple):
    """Rows that are never trained on, as a training went back to the checkpoint ``after_step``."""

    after_step: int
    seq_len: int
    """Of the samples that they are skipped in."""
    rows: int


def left_out_between(phases: Sequence[Phase], checkpoint_step: int, spike_step: int) -> tuple[LeftOut, ...]:
    """What was read after the checkpoint up to the spike, of the samples of each length."""
    rows: dict[int, int] = {}
    for phase in phases:
        steps = min(spike_step, phase.end) - max(checkpoint_step, phase.first_step)
        if steps > 0:
            rows[phase.seq_len] = rows.get(phase.seq_len, 0) + steps * phase.global_batch_size
    return tuple(LeftOut(checkpoint_step, seq_len, number) for seq_len, number in rows.items())


def rows_left_out(left_out: Iterable[LeftOut], seq_len: int) -> int:
    """How many rows of the samples of this length a training has skipped up to now."""
    return sum(entry.rows for entry in left_out if entry.seq_len == seq_len)
