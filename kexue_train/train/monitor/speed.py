"""How fast training is, in tokens and in operations, and when it will be done."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from kexue_train.train.monitor.flops import FlopRule, PeakRates
from kexue_train.train.monitor.meter import Totals
from kexue_train.train.objective import LossTerms

_LINES = 50


class Speedometer:
    """Turns the totals of each line of metrics into rates.

    Args:
        rule: Operations of the model.
        peak: What all devices together could do.
        step: Steps done.
        clock: Seconds.

    Attributes:
        peak: As given.
    """

    def __init__(self, rule: FlopRule, peak: PeakRates, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.peak, self._rule, self._clock = peak, rule, clock
        self._marks = deque([(step, clock())], maxlen=_LINES)

    def read(self, step: int, last_step: int, totals: Totals) -> dict[str, float]:
        """After ``step`` steps, of ``last_step`` in all.

        Returns:
            ``tokens_per_second`` (real tokens), ``flops_per_second``, ``mfu`` (share of what the devices were measured
            to do), ``mfu_datasheet`` (of what their makers promise; left out if unknown), and ``eta_seconds`` at the
            pace of the last 50 lines, validating and saving included.
        """
        predictions = totals.terms[LossTerms._fields.index("mlm_count")]
        flops = self._rule.flops(totals.tokens, totals.seen_tokens, predictions) / totals.seconds
        self._marks.append((step, self._clock()))
        (first_step, first), (_, now) = self._marks[0], self._marks[-1]
        rates = {
            "tokens_per_second": totals.tokens / totals.seconds,
            "flops_per_second": flops,
            "mfu": flops / self.peak.measured,
            "eta_seconds": (last_step - step) * (now - first) / (step - first_step),
        }
        return rates | ({"mfu_datasheet": flops / self.peak.datasheet} if self.peak.datasheet else {})
