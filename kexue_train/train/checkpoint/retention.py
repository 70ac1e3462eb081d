"""Which checkpoints are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Retention:
    """The newest few, every so many steps one for ever, and the best one."""

    newest: int
    every: int | None = None
    """Steps; None: only the newest and the best stay."""

    def kept(self, losses: Mapping[int, float | None]) -> set[int]:
        """Those to keep of the steps that have a checkpoint, given their validation losses (None: not validated)."""
        steps = sorted(losses)
        for_ever = {step for step in steps if self.every and step % self.every == 0}
        best = best_step(losses)
        return {*steps[-self.newest :], *for_ever} | ({best} if best is not None else set())


def best_step(losses: Mapping[int, float | None]) -> int | None:
    """The step of lowest loss, the earlier of equal ones; None if none has a finite one.

    Since the best one is never deleted, the best of those there is the best of all there ever were.
    """
    finite = [(loss, step) for step, loss in losses.items() if loss is not None and math.isfinite(loss)]
    return min(finite)[1] if finite else None
