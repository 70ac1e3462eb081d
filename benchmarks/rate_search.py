"""The best learning rate among powers of two."""

from __future__ import annotations

import math
from collections.abc import Callable


def best_power(loss: Callable[[int], float], start: int = 0, first_way: int = 1) -> int:
    """Return a power both of whose neighbours have a higher loss; three trials if it is ``start`` or the next one.

    Args:
        loss: Loss with the learning rate times 2 to that power; asked again for the same. NaN counts as infinite.
        start: Where the search begins.
        first_way: 1 or -1: which neighbour of ``start`` is tried first.
    """

    def finite(power: int) -> float:
        value = loss(power)
        return value if math.isfinite(value) else math.inf

    power, way = start, first_way if finite(start + first_way) < finite(start) else -first_way
    while finite(power + way) < finite(power):
        power += way
    return power
