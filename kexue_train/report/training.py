"""How fast each phase of training was, and on what its time went: pure functions of the metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from kexue_train.metrics.fields import (
    DATA_WAIT,
    MEMORY_BYTES,
    MFU,
    MFU_DATASHEET,
    PHASE,
    SECONDS,
    STALL_SECONDS,
    TIME,
    TOKENS,
    Kind,
    Metric,
    Record,
)
from kexue_train.report.run_data import RunData


class PhaseSpeed(NamedTuple):
    """Consecutive steps with rows of one length."""

    number: int
    first_step: int
    last_step: int
    facts: Record
    """The line that it began with, which tells the row length and the sizes of the batches."""
    tokens: int
    seconds: float
    """Training alone, without validation and saving."""
    mfu: float | None
    """Share of what the devices were measured to do, over the time of the phase."""
    mfu_datasheet: float | None
    memory_bytes: float | None
    """The most that a line tells."""

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens."""
        return self.tokens / self.seconds if self.seconds else None


def phase_speeds(run: RunData) -> list[PhaseSpeed]:
    """Return every phase that has logged a line, in order."""
    lines = run.curve(Kind.TRAIN)
    starts: dict[int, Record] = {}
    for record in run.of_kind(Kind.START, Kind.RESUME, Kind.PHASE):
        starts.setdefault(int(PHASE.amount(record)) or 1, record)
    ordered = sorted(starts.items()) or [(1, {"step": 0})]
    ends = [record["step"] for _, record in ordered[1:]]
    found = []
    for (number, facts), end in zip(ordered, [*ends, None], strict=True):
        first = facts["step"]
        own = [r for r in lines if r["step"] > first and (end is None or r["step"] <= end)]
        if own:
            before = next((r for r in reversed(lines) if r["step"] <= first), {})
            found.append(_speed(number, facts, own, before))
    return found


def training_shares(run: RunData) -> list[tuple[str, float]]:
    """Return (on what, seconds) of the training stage, as far as the metrics tell; empty before the first line.

    Whatever the stage took beyond its steps, waits and checkpoints went into validation, the start of the workers and
    repeated steps. It is known only if the stage ran without interruption.
    """
    lines = run.curve(Kind.TRAIN)
    if not lines:
        return []
    seconds = run.training_seconds
    waited = sum(wait * spent for wait, spent in _weighted({}, lines, DATA_WAIT))
    stalled = sum(STALL_SECONDS.amount(record) for record in run.of_kind(Kind.CHECKPOINT))
    shares = [("steps", max(0.0, seconds - waited)), ("waiting for data", waited), ("writing checkpoints", stalled)]
    rest = _stage_seconds(run) - seconds - stalled
    return [*shares, ("validation, starts and repeated steps", rest)] if rest > 0 else shares


def _stage_seconds(run: RunData) -> float:
    """Return the time of the training stage if all of the training lies within, else 0."""
    stage = next((r for r in run.stages if r.get("stage") == "train"), {})
    first = next(map(TIME.of, run.of_kind(Kind.START, Kind.RESUME)), None)
    whole = first is not None and "started" in stage and stage["started"] <= first
    return float(stage.get("seconds") or 0.0) if whole else 0.0


def _speed(number: int, facts: Record, lines: list[Record], before: Record) -> PhaseSpeed:
    return PhaseSpeed(
        number=number,
        first_step=facts["step"],
        last_step=lines[-1]["step"],
        facts=facts,
        tokens=int(TOKENS.amount(lines[-1]) - TOKENS.amount(before)),
        seconds=SECONDS.amount(lines[-1]) - SECONDS.amount(before),
        mfu=_mean_over_time(before, lines, MFU),
        mfu_datasheet=_mean_over_time(before, lines, MFU_DATASHEET),
        memory_bytes=max((value for value in map(MEMORY_BYTES.of, lines) if value), default=None),
    )


def _mean_over_time(before: Record, lines: list[Record], metric: Metric) -> float | None:
    pairs = list(_weighted(before, lines, metric))
    spent = sum(seconds for _, seconds in pairs)
    return sum(value * seconds for value, seconds in pairs) / spent if spent else None


def _weighted(before: Record, lines: list[Record], metric: Metric) -> Iterator[tuple[float, float]]:
    """Yield (value, seconds of training that it stands for) of every line after ``before`` that has a value."""
    for last, line in pairwise([before, *lines]):
        if (value := metric.of(line)) is not None and math.isfinite(value):
            yield value, max(0.0, SECONDS.amount(line) - SECONDS.amount(last))
