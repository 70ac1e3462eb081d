"""What was out of the ordinary in a run, told from its metrics, manifests and results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

from kexue_train.report.run_data import Record, RunData

_WINDOW = 50
_MIN_BEFORE = 8
_DEVIATIONS = 10.0
_NORMAL = 1.4826  # standard deviations per median absolute deviation, of a normal distribution
_MIN_RISE = 0.1
_MAX_UNKNOWN = 0.01
_MAX_NAMED = 6
LOOKED_FOR = (
    "loss spikes and rollbacks, gradients that are not finite, restarts, slow or starving steps, full memory, failed "
    "checkpoints, drifted embeddings, refused records, unknown tokens, and failed evaluations"
)


@dataclass(frozen=True)
class Anomaly:
    """Something that a reader should know; a ``note`` needs nothing done."""

    severity: Literal["warning", "note"]
    what: str
    details: str = ""


def find_anomalies(run: RunData) -> list[Anomaly]:
    """All of them, the warnings first."""
    parts = (_spikes, _nonfinite, _restarts, _symptoms, _failed_writes, _embeddings, _records, _samples, _evaluations)
    found = [anomaly for part in parts for anomaly in part(run)]
    if run.has_torn_line:
        details = "it is being written, or its writer was killed; the line is left out"
        found.append(Anomaly("note", "The last line of metrics.jsonl is torn", details))
    return sorted(found, key=lambda anomaly: anomaly.severity == "note")


def loss_spikes(lines: list[Record]) -> list[int]:
    """Steps of "train" lines whose loss lies far above the median of the 50 lines before."""
    steps, before = [], list[float]()
    for line in lines:
        loss = line.get("mlm_loss")
        if not isinstance(loss, int | float) or not math.isfinite(loss):
            continue
        recent = before[-_WINDOW:]
        # The first comparison is implied by the second, and spares most medians.
        if len(recent) >= _MIN_BEFORE and loss > (1 + _MIN_RISE) * min(recent) and loss > _highest_usual(recent):
            steps.append(int(line["step"]))
        else:
            before.append(float(loss))
    return steps


def _highest_usual(losses: list[float]) -> float:
    middle = median(losses)
    deviation = _NORMAL * median(abs(loss - middle) for loss in losses)
    return max(middle + _DEVIATIONS * deviation, middle * (1 + _MIN_RISE))


def _spikes(run: RunData) -> Iterator[Anomaly]:
    for record in run.of_kind("rollback"):
        usual = f", usual is {record['usual']:.3f}" if record.get("usual") is not None else ""
        details = (
            f"the loss of step {record.get('spike_step')} was {_number(record.get('loss'))}{usual}; "
            "the rows read since are left out"
        )
        yield Anomaly("warning", f"Training went back to step {record['step']:,} after a loss spike", details)
    if steps := loss_spikes(run.curve("train")):
        yield Anomaly("warning", f"{_times(len(steps), 'logged loss', 'es')} far above the usual", _at_steps(steps))


def _nonfinite(run: RunData) -> Iterator[Anomaly]:
    if records := run.of_kind("nonfinite"):
        number: Counter[str] = Counter()
        for record in records:
            number.update(record.get("tensors") or {})
        worst = ", ".join(f"{name} in {_times(steps, 'step')}" for name, steps in number.most_common(3))
        details = f"{_at_steps([int(r['step']) for r in records])}; most often {worst}"
        yield Anomaly("warning", "Gradients were not finite", details if number else "")


def _restarts(run: RunData) -> Iterator[Anomaly]:
    rolled_back = {r.get("step") for r in run.of_kind("rollback")}
    if steps := [int(r["step"]) for r in run.of_kind("resume") if r.get("step") not in rolled_back]:
        details = f"{_at_steps(steps)}, from the checkpoint there; a resume repeats no row and skips none"
        yield Anomaly("note", f"Training was resumed {_times(len(steps), 'time')}", details)


def _symptoms(run: RunData) -> Iterator[Anomaly]:
    by_symptom: dict[str, list[Record]] = {}
    for record in run.of_kind("warning"):
        by_symptom.setdefault(str(record.get("symptom")), []).append(record)
    for symptom, records in by_symptom.items():
        details = f"{_at_steps([int(r['step']) for r in records])}: {records[-1].get('message', '')}"
        yield Anomaly("warning", f"Training warned of “{symptom}”", details)


def _failed_writes(run: RunData) -> Iterator[Anomaly]:
    for kind, what in (
        ("checkpoint_failed", "A checkpoint could not be written"),
        ("mirror_failed", "A mirror failed"),
    ):
        if records := run.of_kind(kind):
            details = (
                f"{_at_steps([int(r['step']) for r in records])}; last: {records[-1].get('reason', 'no reason told')}"
            )
            yield Anomaly("warning", what, details)


def _embeddings(run: RunData) -> Iterator[Anomaly]:
    lines = [r for r in run.curve("train") if "embedding_max" in r]
    if not lines:
        return
    last = lines[-1]
    if not math.isfinite(last["embedding_max"]):
        yield Anomaly("warning", "The word table holds values that are not finite")
    elif drifted := last.get("embedding_drifted_rows"):
        details = (
            f"largest value {last['embedding_max']:.3g}; rows of rare tokens are driven by weight decay and sign alone"
        )
        yield Anomaly("warning", f"{drifted:.2%} of the rows of the word table have drifted", details)


def _records(run: RunData) -> Iterator[Anomaly]:
    for name, manifest in run.manifests.items():
        refused: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for entry in manifest.inputs:
            refused.update(entry.rejected)
            dropped.update(entry.dropped)
        if refused.total():
            yield Anomaly("warning", f"{refused.total():,} records were refused in {name}", _reasons(refused))
        if dropped.total():
            yield Anomaly("note", f"{dropped.total():,} records were left out by filters in {name}", _reasons(dropped))


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


def _at_steps(steps: list[int]) -> str:
    named = ", ".join(f"{step:,}" for step in steps[:_MAX_NAMED])
    more = f" and {len(steps) - _MAX_NAMED:,} more" if len(steps) > _MAX_NAMED else ""
    return f"at {'step' if len(steps) == 1 else 'steps'} {named}{more}"


def _times(number: int, noun: str, ending: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else str(value)
