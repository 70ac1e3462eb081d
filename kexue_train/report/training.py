"""How fast each phase of training was, and on what its time went: pure functions of the metrics."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from kexue_train.report.run_data import Record, RunData

_PHASE_FACTS = ("seq_len", "global_batch_size", "micro_batch_size", "accumulation_steps")


class PhaseSpeed(NamedTuple):
    """Consecutive steps with rows of one length."""

    number: int
    first_step: int
    last_step: int
    facts: dict[str, int]
    """``seq_len`` and the sizes of the batches, as far as the metrics tell."""
    tokens: int
    seconds: float
    """Training alone, without validation and saving."""
    mfu: float | None
    """Share of what the devices were measured to do, over the time of the phase."""
    mfu_datasheet: float | None
    memory_bytes: int | None
    """The most that a line tells."""

    @property
    def tokens_per_second(self) -> float | None:
        """Real tokens."""
        return self.tokens / self.seconds if self.seconds else None


def phase_speeds(run: RunData) -> list[PhaseSpeed]:
    """Every phase that has logged a line, in order."""
    lines = run.curve("train")
    starts: dict[int, tuple[int, Record]] = {}
    for record in run.of_kind("start", "resume", "phase"):
        starts.setdefault(int(record.get("phase", 1)), (int(record.get("step", 0)), record))
    if not starts:
        starts[1] = (0, {})
    found = []
    ordered = sorted(starts.items())
    ends = [first for _, (first, _) in ordered[1:]]
    for (number, (first, facts)), end in zip(ordered, [*ends, None], strict=True):
        own = [r for r in lines if r["step"] > first and (end is None or r["step"] <= end)]
        if own:
            before = next((r for r in reversed(lines) if r["step"] <= first), {})
            found.append(_speed(number, first, own, before, facts))
    return found


def training_shares(run: RunData) -> list[tuple[str, float]]:
    """(On what, seconds) of the training stage; what the metrics cannot tell is left out. Empty before the first line.

    Whatever the stage took beyond its steps, waits and checkpoints went into validation, the start of the workers and
    steps that were done again. It is known only if the stage was done in one go.
    """
    lines = run.curve("train")
    if not lines:
        return []
    seconds = run.training_seconds
    waited = sum(wait * spent for wait, spent in _weighted({}, lines, "data_wait"))
    stalled = sum(float(r.get("stall_seconds") or 0.0) for r in run.of_kind("checkpoint"))
    shares = [("steps", max(0.0, seconds - waited)), ("waiting for data", waited), ("writing checkpoints", stalled)]
    rest = _stage_seconds(run) - seconds - stalled
    return [*shares, ("validation, starts and repeated steps", rest)] if rest > 0 else shares


def _stage_seconds(run: RunData) -> float:
    """Of the training stage if all of the training lies within, else 0."""
    stage = next((r for r in run.stages if r.get("stage") == "train"), {})
    first = next((r.get("time") for r in run.of_kind("start", "resume")), None)
    whole = first is not None and "started" in stage and stage["started"] <= first
    return float(stage.get("seconds") or 0.0) if whole else 0.0


def _speed(number: int, first: int, lines: list[Record], before: Record, facts: Record) -> PhaseSpeed:
    memory = [int(r["memory_bytes"]) for r in lines if r.get("memory_bytes")]
    return PhaseSpeed(
        number=number,
        first_step=first,
        last_step=int(lines[-1]["step"]),
        facts={name: int(facts[name]) for name in _PHASE_FACTS if name in facts},
        tokens=int((lines[-1].get("tokens") or 0) - (before.get("tokens") or 0)),
        seconds=float((lines[-1].get("seconds") or 0.0) - (before.get("seconds") or 0.0)),
        mfu=_mean_over_time(before, lines, "mfu"),
        mfu_datasheet=_mean_over_time(before, lines, "mfu_datasheet"),
        memory_bytes=max(memory, default=None),
    )


def _mean_over_time(before: Record, lines: list[Record], key: str) -> float | None:
    pairs = list(_weighted(before, lines, key))
    spent = sum(seconds for _, seconds in pairs)
    return sum(value * seconds for value, seconds in pairs) / spent if spent else None


def _weighted(before: Record, lines: list[Record], key: str) -> Iterator[tuple[float, float]]:
    """(Value, seconds of training that it stands for) of every line that has it; ``before`` is the line before them."""
    for last, line in pairwise([before, *lines]):
        if isinstance(line.get(key), int | float):
            yield float(line[key]), max(0.0, float(line.get("seconds") or 0.0) - float(last.get("seconds") or 0.0))
