"""All checks of the acceptance, in the order in which they run."""

from __future__ import annotations

from benchmarks.gpu import artifacts, attention, environment, layers, losses, optimizer, speed, training, waits
from benchmarks.gpu.check import Check

CHECKS: tuple[Check, ...] = (
    *environment.CHECKS,
    *attention.CHECKS,
    *losses.CHECKS,
    *optimizer.CHECKS,
    *layers.CHECKS,
    *waits.CHECKS,
    *training.CHECKS,
    *artifacts.CHECKS,
    *speed.CHECKS,
)
