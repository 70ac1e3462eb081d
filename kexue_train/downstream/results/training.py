"""How an encoder was trained on labelled data, and what several trainings found: the parts of fine-tuning results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from kexue_train.downstream.results.result import ResultPart
from kexue_train.foundation.config import Config

Split = Literal["dev", "test"]
SplitScores = dict[Split, dict[str, float]]
"""Split -> metric -> value, 0 to 1 (Spearman correlations -1 to 1)."""


class FitSettings(Config):
    """Settings of ``loop.fit``; the defaults are those of RoFormerV2 for classification."""

    lr: float = Field(default=5e-4, gt=0)
    """Largest step, as a share of each tensor's root mean square."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it falls linearly to zero afterwards."""
    epochs: int = Field(default=10, ge=1)
    """Times that every record is seen."""
    batch_size: int = Field(default=32, ge=1)
    """Records per step."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Pieces that a batch is computed in, for less memory."""
    gradient_keep: float = Field(default=1.0, gt=0, le=1)
    """Share of each gradient's elements that count at a step (gradient dropout); 1 keeps all."""
    flood_level: float = Field(default=0.0, ge=0)
    """The loss b below which training climbs instead: |loss - b| + b; 0 switches it off."""


class Spread(ResultPart):
    """A metric over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None of a single seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize at least one value."""
        return cls(mean=float(np.mean(values)), std=float(np.std(values, ddof=1)) if len(values) > 1 else None)

    @property
    def text(self) -> str:
        """Mean ± standard deviation, times 100."""
        return f"{100 * self.mean:.1f}" + ("" if self.std is None else f" ± {100 * self.std:.1f}")


class SeedRun(ResultPart):
    """One training."""

    seed: int
    best_epoch: int
    """Counted from 1; the one with the best metric on dev, whose weights are scored."""
    losses: list[float]
    """Mean loss of every epoch."""
    dev_by_epoch: list[float]
    """The metric on dev after every epoch."""
    scores: SplitScores


def spreads(runs: Sequence[SeedRun]) -> dict[Split, dict[str, Spread]]:
    """Return the spread of every metric over the runs; nothing without any."""
    return {
        split: {metric: Spread.of([run.scores[split][metric] for run in runs]) for metric in scores}
        for split, scores in (runs[0].scores.items() if runs else ())
    }


def reported_split(records: dict[str, int]) -> Split:
    """Return the split that is reported, of those with records: the test set, or dev for lack of one."""
    return "test" if "test" in records else "dev"
