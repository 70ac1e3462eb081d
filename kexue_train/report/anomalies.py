"""Find what was out of the ordinary in a run, in its metrics, manifests and results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from kexue_train.metrics.fields import (
    EMBEDDING_DRIFTED_ROWS,
    EMBEDDING_MAX,
    MESSAGE,
    REASON,
    SPIKE_LOSS,
    SPIKE_STEP,
    SYMPTOM,
    TENSORS,
    USUAL_LOSS,
    Kind,
    Metric,
    Record,
    head_metrics,
)
from kexue_train.metrics.heads import HEADS
from kexue_train.metrics.spikes import SpikeDetector
from kexue_train.report.run_data import RunData

_MAX_UNKNOWN = 0.01
_MAX_NAMED = 6
LOOKED_FOR = (
    "loss spikes and rollbacks, gradients that are not finite, restarts, slow or starving steps, full memory, failed "
    "checkpoints, drifted embeddings, rejected records, unknown tokens, and failed evaluations"
)


@dataclass(frozen=True)
class Anomaly:
    """Something that a reader should know; a ``note`` needs nothing done."""

    severity: Literal["warning", "note"]
    what: str
    details: str = ""


def find_anomalies(run: RunData) -> list[Anomaly]:
    """Find all anomalies, the warnings first."""
    parts = (_spikes, _nonfinite, _restarts, _symptoms, _failed_writes, _embeddings, _records, _samples, _evaluations)
    found = [anomaly for part in parts for anomaly in part(run)]
    if run.has_torn_line:
        details = "it is being written, or its writer was killed; the line is ignored"
        found.append(Anomaly("note", "The last line of metrics.jsonl is torn", details))
    return sorted(found, key=lambda anomaly: anomaly.severity == "note")


def loss_spikes(lines: list[Record], loss: Metric, borders: Sequence[int] = ()) -> list[int]:
    """Return the steps of the lines whose loss is a spike; losses are not compared across ``borders`` of phases.

    A loss that is not finite is no spike here: the checks tell of it.
    """
    detector, found, left = SpikeDetector(), [], sorted(borders)
    for line in lines:
        while left and left[0] < line["step"]:
            left.pop(0)
            detector.forget()
        value = loss.of(line)
        if value is not None and math.isfinite(value) and detector.is_spike(value):
            found.append(line["step"])
    return found


def _spikes(run: RunData) -> Iterator[Anomaly]:
    for record in run.of_kind(Kind.ROLLBACK):
        usual = f", the usual loss {USUAL_LOSS.text(record)}" if USUAL_LOSS.of(record) is not None else ""
        details = (
            f"the loss of step {SPIKE_STEP.text(record)} was {SPIKE_LOSS.text(record)}{usual}; "
            "the rows read since are skipped"
        )
        yield Anomaly("warning", f"Training rolled back to step {record['step']:,} after a loss spike", details)
    borders = [record["step"] for record in run.of_kind(Kind.PHASE)]
    loss, _ = head_metrics(HEADS[0])
    if steps := loss_spikes(run.curve(Kind.TRAIN), loss, borders):
        yield Anomaly("warning", f"{_times(len(steps), 'logged loss', 'es')} far above the usual", _at_steps(steps))


def _nonfinite(run: RunData) -> Iterator[Anomaly]:
    if records := run.of_kind(Kind.NONFINITE):
        number: Counter[str] = Counter()
        for record in records:
            number.update(_counts(record.get(TENSORS.key)))
        worst = ", ".join(f"{name} in {_times(steps, 'step')}" for name, steps in number.most_common(3))
        yield Anomaly("warning", "Gradients were not finite", f"{_at_steps_of(records)}; most often {worst}")


def _counts(value: object) -> dict[str, int]:
    entries = value.items() if isinstance(value, dict) else ()
    return {name: number for name, number in entries if isinstance(number, int)}


def _restarts(run: RunData) -> Iterator[Anomaly]:
    rolled_back = {record["step"] for record in run.of_kind(Kind.ROLLBACK)}
    if resumes := [record for record in run.of_kind(Kind.RESUME) if record["step"] not in rolled_back]:
        details = f"{_at_steps_of(resumes)}, from the checkpoint there; a resume repeats no row and skips none"
        yield Anomaly("note", f"Training was resumed {_times(len(resumes), 'time')}", details)


def _symptoms(run: RunData) -> Iterator[Anomaly]:
    by_symptom: dict[str, list[Record]] = {}
    for record in run.of_kind(Kind.WARNING):
        by_symptom.setdefault(SYMPTOM.of(record), []).append(record)
    for symptom, records in by_symptom.items():
        details = f"{_at_steps_of(records)}: {MESSAGE.of(records[-1])}"
        yield Anomaly("warning", f"Training warned of “{symptom}”", details)


def _failed_writes(run: RunData) -> Iterator[Anomaly]:
    for kind, what in (
        (Kind.CHECKPOINT_FAILED, "A checkpoint could not be written"),
        (Kind.MIRROR_FAILED, "A mirror failed"),
    ):
        if records := run.of_kind(kind):
            yield Anomaly("warning", what, f"{_at_steps_of(records)}; the last reason: {REASON.text(records[-1])}")


def _embeddings(run: RunData) -> Iterator[Anomaly]:
    last = next((r for r in reversed(run.curve(Kind.TRAIN)) if EMBEDDING_MAX.of(r) is not None), {})
    largest, drifted = EMBEDDING_MAX.of(last) or 0.0, EMBEDDING_DRIFTED_ROWS.of(last)
    if not math.isfinite(largest):
        yield Anomaly("warning", "The word table holds values that are not finite")
    elif drifted:
        details = f"largest value {largest:.3g}; weight decay and sign alone move the rows of rare tokens"
        yield Anomaly("warning", f"{drifted:.2%} of the rows of the word table have drifted", details)


def _records(run: RunData) -> Iterator[Anomaly]:
    for name, manifest in run.manifests.items():
        rejected = manifest.rejected
        dropped = sum((Counter(entry.dropped) for entry in manifest.inputs), Counter[str]())
        if rejected.total():
            yield Anomaly("warning", f"{rejected.total():,} records were rejected in {name}", _reasons(rejected))
        if dropped.total():
            yield Anomaly("note", f"{dropped.total():,} records were left out in {name}", _reasons(dropped))


def _samples(run: RunData) -> Iterator[Anomaly]:
    statistics = run.manifests["samples"].statistics if "samples" in run.manifests else {}
    unknown = statistics.get("unknown_rate") or 0.0
    if unknown > _MAX_UNKNOWN:
        details = "the vocabulary does not fit the text; train one on it, or a larger one"
        yield Anomaly("warning", f"{unknown:.1%} of the tokens are unknown", details)


def _evaluations(run: RunData) -> Iterator[Anomaly]:
    for name, result in run.results.items():
        for failure in result.failures:
            yield Anomaly("warning", f"{failure.subject} has no {failure.missing} in {name}", failure.reason)


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common(_MAX_NAMED))


def _at_steps_of(records: list[Record]) -> str:
    return _at_steps([record["step"] for record in records])


def _at_steps(steps: list[int]) -> str:
    named = ", ".join(f"{step:,}" for step in steps[:_MAX_NAMED])
    more = f" and {len(steps) - _MAX_NAMED:,} more" if len(steps) > _MAX_NAMED else ""
    return f"at {'step' if len(steps) == 1 else 'steps'} {named}{more}"


def _times(number: int, noun: str, ending: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else ending}"
