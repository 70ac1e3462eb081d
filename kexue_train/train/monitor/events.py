"""What a running training tells others, from its file of metrics: progress to a person, events to an orchestrator."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, Self

from kexue_train.foundation.progress import Progress
from kexue_train.metrics.failure import FailureKind, read_failure
from kexue_train.metrics.fields import (
    CHOICE,
    ETA_SECONDS,
    GLOBAL_BATCH_SIZE,
    MESSAGE,
    PATH,
    PHASE,
    REASON,
    SEQ_LEN,
    SOURCE,
    SOURCE_ACCURACY,
    SOURCE_LOSS,
    SPIKE_LOSS,
    SPIKE_STEP,
    STEP,
    SYMPTOM,
    TASK,
    TASK_ACCURACY,
    TASK_LOSS,
    TASK_SPLIT,
    Kind,
    Metric,
    Record,
    Symptom,
    head_metrics,
    headline_metrics,
)
from kexue_train.metrics.file import MetricTail, describe_foreign
from kexue_train.metrics.heads import HEADS
from kexue_train.train.job import TrainDir

_POLL_SECONDS = 0.5
_NONFINITE = {str(value) for value in (math.nan, math.inf, -math.inf)}


class TrainingEvent(NamedTuple):
    """Something that happened at a step, on which an orchestrator may act."""

    kind: Literal["checkpoint_saved", "loss_nonfinite"]
    step: int
    detail: str
    """The checkpoint's folder, or the loss in words."""


class TrainingWatch:
    """Finds the events of a training from now on. Each comes once, also if a restart repeats its step.

    A training that starts from the beginning replaces the one before, and all of its events count.
    """

    def __init__(self, paths: TrainDir) -> None:
        self._paths, self._tail = paths, MetricTail(paths.metrics)
        self._first_step = last_checkpoint_step(paths)
        self._failure_before = _version(paths.failure)
        self._seen: set[TrainingEvent] = set()
        self._lines: dict[int, Record] = {}

    def read(self) -> list[TrainingEvent]:
        """Return the events since the last call."""
        found: list[TrainingEvent] = []
        for record in self._tail.read():
            if record["kind"] == Kind.START and self._first_step:
                self._first_step, found = 0, []  # those were of the training before
                self._seen.clear()
                self._lines.clear()
            if record["step"] < self._first_step:
                continue
            if record["kind"] == Kind.TRAIN:
                self._lines[record["step"]] = record
            if (event := event_of(record, self._paths)) and event not in self._seen:
                self._seen.add(event)
                found.append(event)
        return [event for event in found if event.step > self._first_step]

    def read_failure(self) -> TrainingEvent | None:
        """Return the event that the training has failed with, if there is one."""
        if _version(self._paths.failure) == self._failure_before:
            return None
        failure = read_failure(self._paths.failure)
        if failure is None or failure.kind is not FailureKind.LOSS_NONFINITE or failure.step is None:
            return None
        return TrainingEvent("loss_nonfinite", failure.step, str(failure.value))

    def table(self, rows: int = 30) -> list[dict[str, str]]:
        """Return key metrics over time: at most ``rows`` lines, evenly chosen, the last one among them."""
        return metrics_table([self._lines[step] for step in sorted(self._lines)], rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tail.close()


def event_of(record: Record, paths: TrainDir) -> TrainingEvent | None:
    """Return the event that a line of metrics tells of, if any."""
    from kexue_train.train.checkpoint import checkpoint_name  # noqa: PLC0415  # loads torch

    step, kind = int(record["step"]), record["kind"]
    if kind == Kind.CHECKPOINT_SAVED:
        return TrainingEvent("checkpoint_saved", step, str(paths.checkpoints / checkpoint_name(step)))
    if kind == Kind.ROLLBACK and (loss := SPIKE_LOSS.of(record)) in _NONFINITE:
        return TrainingEvent("loss_nonfinite", int(SPIKE_STEP.of(record) or step), loss)
    if kind == Kind.WARNING and SYMPTOM.of(record) == Symptom.LOSS:
        return TrainingEvent("loss_nonfinite", step, MESSAGE.of(record))
    return None


def metrics_table(lines: Sequence[Record], rows: int) -> list[dict[str, str]]:
    """Return training lines as rows of texts under their labels."""
    every = max(1, math.ceil(len(lines) / rows))
    columns = [STEP, *headline_metrics()]
    return [
        {metric.label: metric.write(value) for metric in columns if (value := metric.of(line)) is not None}
        for line in lines[::-1][::every][::-1]
    ]


def last_checkpoint_step(paths: TrainDir) -> int:
    """Return the step of the newest checkpoint, from which a training resumes; 0 if there is none."""
    from kexue_train.train.checkpoint import list_checkpoints, step_of  # noqa: PLC0415  # loads torch

    return next(map(step_of, (path.name for path in list_checkpoints(paths.checkpoints))), 0)


def _version(path: Path) -> tuple[int, int] | None:
    """Return what changes when the file is replaced."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


@contextmanager
def progress_reported(metrics: Path, first_step: int, steps: int, progress: Progress) -> Iterator[None]:
    """While the workers write ``metrics``, report their steps, validations and what else a person should know."""
    reporter, tail, done = ProgressReporter(first_step, steps, progress), MetricTail(metrics), threading.Event()

    def report() -> None:
        reporter.report(tail.read())
        if tail.foreign:
            progress.note(describe_foreign(metrics, tail.foreign))

    def poll() -> None:
        while not done.wait(_POLL_SECONDS):
            report()
        report()
        tail.close()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class ProgressReporter:
    """Reports lines of metrics; what comes twice because workers had to start again is noted once.

    Args:
        first_step: Steps done before; what they brought was reported then.
        steps: Steps in all.
        progress: Where it is reported.
    """

    def __init__(self, first_step: int, steps: int, progress: Progress) -> None:
        self._first_step, self._steps, self._progress = first_step, steps, progress
        self._noted: set[str] = set()
        self._has_trained = False

    def report(self, records: Sequence[Record]) -> None:
        """Note what a person should read, and the state after the last training line."""
        for record in records:
            if self._is_new(record) and (text := describe(record)) and text not in self._noted:
                self._noted.add(text)
                self._progress.note(text)
        if last := next((record for record in reversed(records) if record["kind"] == Kind.TRAIN), None):
            shown = [*headline_metrics(), ETA_SECONDS]
            facts = {metric.key: value for metric in shown if (value := metric.of(last)) is not None}
            self._progress.update(last["step"], self._steps, "steps", **facts)

    def _is_new(self, record: Record) -> bool:
        step, kind = record["step"], record["kind"]
        if step > self._first_step:
            self._has_trained |= kind == Kind.TRAIN
            return True
        # The first resume is that of whoever has started the workers; a warning may come before the first step.
        return bool(
            step == self._first_step
            and (kind in (Kind.START, Kind.WARNING) or (kind == Kind.RESUME and self._has_trained))
        )


def describe(record: Record) -> str | None:
    """Return a line of metrics in words, if a person should read it."""
    step = f"step {STEP.text(record)}: "
    match record["kind"]:
        case Kind.VALIDATION:
            scores = [_describe_scores(record, *head_metrics(head)) for head in HEADS]
            return f"{step}validation: {'; '.join(filter(None, scores))}" if any(scores) else None
        case Kind.TASK if TASK_SPLIT.of(record) == "heldout":
            return f"{step}validation of {TASK.of(record)}: {_describe_scores(record, TASK_LOSS, TASK_ACCURACY)}"
        case Kind.SOURCE:
            return f"{step}validation of {SOURCE.of(record)}: {_describe_scores(record, SOURCE_LOSS, SOURCE_ACCURACY)}"
        case Kind.WARNING:
            return f"{step}{MESSAGE.of(record)}"
        case Kind.START:
            return CHOICE.of(record) or None
        case Kind.PROFILE:
            return f"{step}profile in {PATH.of(record)}"
        case Kind.PHASE:
            rows = f"{GLOBAL_BATCH_SIZE.text(record)} rows of {SEQ_LEN.text(record)} tokens a step"
            return f"{step}phase {PHASE.text(record)}, {rows}"
        case Kind.RESUME:
            return f"{step}the workers were started again from its checkpoint"
        case Kind.ROLLBACK:
            where = f"back to step {STEP.text(record)}; the rows read since are skipped"
            return f"step {SPIKE_STEP.text(record)}: the loss is {SPIKE_LOSS.of(record)}: {where}"
        case Kind.CHECKPOINT_FAILED | Kind.MIRROR_FAILED as kind:
            return f"{step}{kind.replace('_', ' ')}: {REASON.of(record)}"
        case _:
            return None


def _describe_scores(record: Record, *metrics: Metric) -> str:
    return ", ".join(f"{metric.label} {metric.text(record)}" for metric in metrics if metric.of(record) is not None)
