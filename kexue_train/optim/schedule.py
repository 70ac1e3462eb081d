"""Learning-rate schedules as piecewise-linear functions of the step."""

from collections.abc import Mapping
from itertools import pairwise


def piecewise_linear(knots: Mapping[int, float], step: int) -> float:
    """The multiplier at ``step``: linear between knots, constant after the last, (0, 0) implied.

    Count steps from 1: at step 0 of an implied warm-up the multiplier is zero and nothing would move.

    Source: https://kexue.fm/archives/8634 and bert4keras ``piecewise_linear``; steps here are optimizer
    steps, there micro-steps.
    """
    points = sorted({0: 0.0, **knots}.items())
    for (left, low), (right, high) in pairwise(points):
        if step < right:
            return low + (high - low) * (step - left) / (right - left)
    return points[-1][1]
