"""The rule that says when a loss is a spike, for the training that goes back from one and the report that names it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

_WINDOW = 64
_ENOUGH = 16
_DEVIATIONS = 10.0
_LEAST_RISE = 0.1
_NORMAL = 1.4826
"""Standard deviations per median absolute deviation, of a normal distribution."""


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
        if not math.isfinite(loss) or (len(self._losses) >= _ENOUGH and self._is_far_above(loss)):
            return True
        self._losses.append(loss)
        return False

    def forget(self) -> None:
        """Compare what comes next with nothing that came before."""
        self._losses.clear()

    def _is_far_above(self, loss: float) -> bool:
        lowest = min(self._losses)
        if loss <= lowest + _LEAST_RISE * abs(lowest):  # implied by what follows, and spares most medians
            return False
        usual = median(self._losses)
        deviation = _NORMAL * median(abs(loss - usual) for loss in self._losses)
        return loss > usual + max(_DEVIATIONS * deviation, _LEAST_RISE * abs(usual))
