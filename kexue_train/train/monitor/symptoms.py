"""Find what goes wrong in a training in its lines of metrics, and say what to do about each symptom.

Chance accuracy is no symptom here: NSP stays at a half for thousands of steps in healthy trainings, and then learns.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from kexue_train.metrics.fields import DATA_WAIT, LOSS, MEMORY_SHARE, TOKENS_PER_SECOND, Record, Symptom

_WINDOW = 50
_STARVING_LINES, _STARVING_SHARE = 10, 0.1
_SLOW_LINES, _USUAL_LINES, _SLOW_RATIO = 3, 10, 0.5
_FULL = 0.95


def find_symptoms(lines: Sequence[Record]) -> dict[Symptom, str]:
    """Find the symptoms that the last of these "train" lines shows, and describe them.

    Args:
        lines: Of one start of the training, in order.

    Returns:
        * ``loader``: the device waited for data for more than a tenth of the time, in the median of ten lines (the
          first line of a start, which waits for the loader to come up, is none of them);
        * ``slow``: three lines in a row have less than half of the throughput that was usual;
        * ``loss``: the loss is not finite;
        * ``memory``: more than 95 % of the memory of a device or machine is taken.
    """
    last = lines[-1]
    found: dict[Symptom, str] = {}
    if not math.isfinite(loss := LOSS.of(last) or 0.0):
        found[Symptom.LOSS] = f"the loss is {loss}; train.faults.on_spike says what follows"
    waits = [DATA_WAIT.amount(line) for line in lines[1:]][-_STARVING_LINES:]
    if len(waits) == _STARVING_LINES and median(waits) > _STARVING_SHARE:
        found[Symptom.LOADER] = (
            f"the device waits for data {median(waits):.0%} of the time; raise train.workers.num_loader_workers, or "
            "put the samples on a faster disk"
        )
    rates = [TOKENS_PER_SECOND.amount(line) for line in lines]
    before, now = rates[:-_SLOW_LINES], rates[-_SLOW_LINES:]
    if len(before) >= _USUAL_LINES and max(now) < _SLOW_RATIO * median(before):
        found[Symptom.SLOW] = (
            f"throughput has fallen to {now[-1]:,.0f} tokens/s from the usual {median(before):,.0f}; look for other "
            "work on the machine, a hot or throttled device, or slow storage"
        )
    if (share := MEMORY_SHARE.amount(last)) > _FULL:
        found[Symptom.MEMORY] = (
            f"{share:.0%} of the memory is taken; a little more ends the training. Lower "
            "train.micro_batch_size, or set train.compute.recompute"
        )
    return found


class SymptomWatch:
    """Warns of a symptom when it comes, and again only after it was absent for 50 lines."""

    def __init__(self) -> None:
        self._lines: deque[Record] = deque(maxlen=_WINDOW)
        self._last_seen: dict[Symptom, int] = {}
        self._number = 0

    def look(self, line: Record) -> dict[Symptom, str]:
        """Take the next "train" line; return the warnings that it calls for, by symptom."""
        self._lines.append(line)
        self._number += 1
        found = find_symptoms(list(self._lines))
        new = {n: text for n, text in found.items() if self._number - self._last_seen.get(n, -_WINDOW) >= _WINDOW}
        self._last_seen |= dict.fromkeys(found, self._number)
        return new
