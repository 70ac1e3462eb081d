"""What a trial measured: seconds and bytes of each stage, the pace of training, the shape of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.run_dir import RunDir
from kexue_train.metrics.fields import LOSS, MEMORY_BYTES, SECONDS, STALL_SECONDS, TOKENS, Kind, Record
from kexue_train.metrics.file import read_metrics
from kexue_train.train.job import TrainDir

_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class StageMeasure:
    """One stage of the trial."""

    seconds: float
    disk_bytes: int
    """What lies in its folder."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens per second of all workers together: the slowest and the fastest quarter, and all."""

    slowest: float
    likely: float
    fastest: float


@dataclass(frozen=True, slots=True)
class TrainingMeasure:
    """A training of the trial."""

    steps: int
    tokens: int
    training_seconds: float
    """Of all steps, without start, validation and saving."""
    beside_seconds: float
    """Start of the workers, saving and end."""
    pace: Pace
    stall_seconds: float
    """For which a checkpoint holds training up."""
    checkpoint_bytes: int
    memory_bytes: float
    """Of a worker on a CPU, else of a GPU."""
    losses: tuple[float, ...]
    """Of every line of metrics."""

    @property
    def step_seconds(self) -> float:
        """Of one step."""
        return self.training_seconds / self.steps

    @property
    def is_falling(self) -> bool:
        """Whether the loss of the last third is below that of the first; True of too few lines to tell."""
        third = len(self.losses) // 3
        if not third:
            return all(map(math.isfinite, self.losses))
        return sum(self.losses[-third:]) < sum(self.losses[:third])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """All that a trial measured."""

    text_bytes: int
    """Of the documents that were drawn or made."""
    slots_per_text_byte: float
    vocab_size: int
    stages: Mapping[str, StageMeasure]
    training: TrainingMeasure
    supervised: TrainingMeasure | None = None
    other_load: float = 0.0
    """Processes of others that wanted a CPU when the trial began, for each CPU."""
    entropy: float | None = None
    """Nats, of the training tokens: the lowest loss without context."""
    heldout_loss: float | None = None
    """Nats, of the hidden tokens of the held-out rows, at the end of the trial."""
    heldout_predictions: int = 0


def measure_training(folder: Path, stage_seconds: float) -> TrainingMeasure | None:
    """Read the metrics of a training and the size of its newest checkpoint; None without a line."""
    from kexue_train.train.checkpoint import list_checkpoints  # noqa: PLC0415  # loads torch

    paths = TrainDir(folder)
    records = read_metrics(paths.metrics)
    lines = [record for record in records if record["kind"] == Kind.TRAIN]
    if not lines:
        return None
    seconds = SECONDS.amount(lines[-1])
    stalls = [STALL_SECONDS.amount(record) for record in records if record["kind"] == Kind.CHECKPOINT]
    checkpoints = list_checkpoints(paths.checkpoints)
    return TrainingMeasure(
        steps=int(lines[-1]["step"]),
        tokens=int(TOKENS.amount(lines[-1])),
        training_seconds=seconds,
        beside_seconds=max(stage_seconds - seconds, 0.0),
        pace=pace_of(lines),
        stall_seconds=sum(stalls) / len(stalls) if stalls else 0.0,
        checkpoint_bytes=folder_bytes(checkpoints[0]) if checkpoints else 0,
        memory_bytes=max(map(MEMORY_BYTES.amount, lines)),
        losses=tuple(value for line in lines if (value := LOSS.of(line)) is not None),
    )


def pace_of(lines: Sequence[Record]) -> Pace:
    """Return the pace of training lines by rising step, without the first quarter of them, which warms up.

    Slowest and fastest are of ``_BLOCKS`` stretches with the same number of lines, or of single lines.
    """
    spans = [
        (TOKENS.amount(line) - TOKENS.amount(before), SECONDS.amount(line) - SECONDS.amount(before))
        for before, line in pairwise([{}, *lines])
    ]
    spans = spans[min(max(1, len(spans) // _BLOCKS), len(spans) - 1) :]
    size = max(1, len(spans) // _BLOCKS)
    rates = [_rate(spans[start : start + size]) for start in range(0, len(spans) - size + 1, size)]
    return Pace(min(rates), _rate(spans), max(rates))


def _rate(spans: Sequence[tuple[float, float]]) -> float:
    return sum(tokens for tokens, _ in spans) / max(sum(seconds for _, seconds in spans), 1e-9)


def measure_rows(run: RunDir, text_bytes: int) -> tuple[float, int]:
    """Return the token slots of the sample rows for a byte of ``text_bytes``, and the pieces of the vocabulary."""
    samples = read_manifest(run.samples)
    slots = samples.rows * int(samples.statistics["seq_len"])
    return slots / text_bytes, int(read_manifest(run.tokenizer).statistics["vocab_size"])


def measure_loss(run: RunDir) -> tuple[float | None, int]:
    """Return the loss of the hidden tokens of the held-out rows, and their number, from the evaluation."""
    from kexue_train.downstream.results.files import read_result  # noqa: PLC0415

    path = run.evaluate / "mlm.json"
    hidden = read_result(path).model_dump().get("hidden_only") if path.exists() else None
    return (hidden["mlm_loss"], int(hidden["predictions"])) if hidden else (None, 0)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
