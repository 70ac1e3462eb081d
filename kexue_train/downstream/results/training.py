"""How an encoder was trained on labelled data, and what several trainings found: the parts of fine-tuning results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from kexue_train.downstream.results.result import ResultPart

Split = Literal["dev", "test"]
SplitScores = dict[Split, dict[str, float]]
"""Split -> metric -> value, 0 to 1 (Spearman correlations -1 to 1)."""


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
    """Counted from 1; the one with the best metric on dev, or the last one without dev. Its weights are scored."""
    losses: list[float]
    """Mean loss of every epoch."""
    dev_by_epoch: list[float]
    """The metric on dev after every epoch; empty where nothing chooses the epoch."""
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
