"""What figures over seeds say about a claim, by thresholds that were fixed before measuring.

Every decision looks at the 95 % interval of the mean over seeds (Student's t). If it reaches over a threshold, the
claim is undecidable here: the spread is wider than the effect.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["confirmed", "refuted", "undecidable here"]

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the last that of the normal distribution.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_NORMAL = 1.960


@dataclass(frozen=True)
class Spread:
    """The mean of a figure over seeds and how far seeds differ."""

    mean: float
    deviation: float
    """Standard deviation over seeds; 0 for one seed."""
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of ``values``, one for each seed and at least one."""
        if not all(map(math.isfinite, values)):  # a training that came to grief
            return cls(statistics.fmean(values), math.nan, len(values))
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval of the mean; infinite for one seed, which says nothing about the next one."""
        if self.count < 2:
            return math.inf
        freedom = self.count - 1
        quantile = _T[freedom - 1] if freedom <= len(_T) else _NORMAL
        return quantile * self.deviation / math.sqrt(self.count)

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.deviation:.2g}" if self.count > 1 else f"{self.mean:.4g}"


def above(values: Sequence[float], *, confirms: float, refutes: float) -> Verdict:
    """Judge a figure that is large if the claim is right.

    Args:
        values: One for each seed.
        confirms: The claim is confirmed if the whole interval lies above this.
        refutes: It is refuted if the whole interval lies below this; at most ``confirms``.
    """
    if refutes > confirms:
        raise ValueError(f"refutes={refutes} above confirms={confirms}: one figure would do both")
    spread = Spread.of(values)
    if not math.isfinite(spread.mean):
        return "undecidable here"
    if spread.mean - spread.half_width > confirms:
        return "confirmed"
    return "refuted" if spread.mean + spread.half_width < refutes else "undecidable here"


def below(values: Sequence[float], *, confirms: float, refutes: float) -> Verdict:
    """Judge a figure that is small if the claim is right; the counterpart of ``above``."""
    return above([-value for value in values], confirms=-confirms, refutes=-refutes)


def within(values: Sequence[float], low: float, high: float) -> Verdict:
    """Judge a figure that the claim puts between ``low`` and ``high``: confirmed inside, refuted outside."""
    return all_of(above(values, confirms=low, refutes=low), below(values, confirms=high, refutes=high))


def all_of(*verdicts: Verdict) -> Verdict:
    """Judge a claim of several parts: one that is refuted refutes it, all have to be confirmed to confirm it."""
    if "refuted" in verdicts:
        return "refuted"
    return "confirmed" if set(verdicts) == {"confirmed"} else "undecidable here"
