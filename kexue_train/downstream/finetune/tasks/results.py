"""What fine-tuning found: the typed contents of its JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from kexue_train import __version__
from kexue_train.downstream.finetune.fit_settings import FitSettings

SCHEMA_VERSION = 1
Encoder = Literal["pretrained", "random"]
Split = Literal["dev", "test"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Spread(_Frozen):
    """A metric over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation; None of a single seed."""

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one value."""
        return cls(mean=float(np.mean(values)), std=float(np.std(values, ddof=1)) if len(values) > 1 else None)


class SeedRun(_Frozen):
    """One training."""

    seed: int
    best_epoch: int
    """Counted from 1; the one with the best ``metric`` on dev, whose weights are scored."""
    losses: list[float]
    """Mean loss of every epoch."""
    dev_by_epoch: list[float]
    """The ``metric`` on dev after every epoch."""
    scores: dict[Split, dict[str, float]]
    """Split -> metric -> value, 0 to 1."""


def spreads(runs: Sequence[SeedRun]) -> dict[Split, dict[str, Spread]]:
    """Of every metric over the runs; empty without any."""
    return {
        split: {metric: Spread.of([run.scores[split][metric] for run in runs]) for metric in scores}
        for split, scores in (runs[0].scores.items() if runs else ())
    }


class EncoderResult(_Frozen):
    """An encoder, trained once per seed."""

    encoder: Encoder
    """pretrained: the model as given. random: the same sizes with fresh weights."""
    runs: list[SeedRun]
    scores: dict[Split, dict[str, Spread]]
    """Over the runs."""


class Baseline(_Frozen):
    """What needs no encoder."""

    name: str
    """chance, majority (the most frequent label of the training set), or bag_of_words (logistic regression)."""
    scores: dict[Split, dict[str, float]]
    penalty: float | None = None
    """Of the regression's weights, chosen on dev."""


class Failure(_Frozen):
    """Why something is missing."""

    encoder: Encoder | None
    """None: the task as a whole."""
    seed: int | None
    error: str


class TaskResult(_Frozen):
    """Everything about one task."""

    task: str
    title: str
    kind: str
    metric: str | None = None
    """The one that chooses the epoch and stands in the table."""
    records: dict[str, int] = {}
    """Split -> records; ``examples``: what an epoch goes through, windows or pieces of the training records."""
    is_dev_held_out: bool = False
    """Whether dev is a tenth of the training file, for lack of a file of its own."""
    num_labels: int | None = None
    """Outputs of the head."""
    max_length: int | None = None
    """Tokens of a sequence."""
    cut: int = 0
    """Sequences that lost tokens, or texts read in pieces, of all splits."""
    unknown_rate: float = 0.0
    """Share of unknown tokens; near 1 the model cannot read the language."""
    fit: FitSettings | None = None
    """How it was trained."""
    baselines: list[Baseline] = []
    encoders: list[EncoderResult] = []
    failures: list[Failure] = []

    @property
    def split(self) -> Split:
        """The split that is reported."""
        return "test" if "test" in self.records else "dev"


class TaskResults(_Frozen):
    """The contents of the file."""

    schema_version: int = SCHEMA_VERSION
    tool_version: str = __version__
    model_type: str
    parameters: int
    """Of the encoder, without heads."""
    seeds: int
    """Trainings of each encoder."""
    one_segment: bool
    """Whether all token types were 0."""
    tasks: list[TaskResult]
