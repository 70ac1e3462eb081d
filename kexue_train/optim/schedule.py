"""Learning-rate schedules as pure functions of the step.

Steps are optimizer steps, counted from 1: at step 0 of a warm-up the multiplier is zero and nothing would move.
"""

import math
from collections.abc import Mapping
from itertools import pairwise


def piecewise_linear(knots: Mapping[int, float], step: int) -> float:
    """The multiplier at ``step``: linear between knots, constant after the last, (0, 0) implied.

    Source: https://kexue.fm/archives/8634 and bert4keras ``piecewise_linear``, which count micro-batches.
    """
    points = sorted({0: 0.0, **knots}.items())
    for (left, low), (right, high) in pairwise(points):
        if step < right:
            return low + (high - low) * (step - left) / (right - left)
    return points[-1][1]


def cosine_decay(step: int, num_steps: int, final: float) -> float:
    """From 1 at step 0 to ``final`` at ``num_steps`` along half a period of a cosine, constant afterwards."""
    progress = min(step / num_steps, 1.0)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
