"""What an orchestrator may want to act on while a training runs: saved checkpoints, losses that are no number."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from kexue_train.metrics.file import MetricTail
from kexue_train.train.job import TrainDir

_COLUMNS = ("step", "loss", "mlm_accuracy", "nsp_accuracy", "lr", "tokens_per_second")
# What a training says that ends with such a loss; see ``faults/spikes.py``.
_ENDED = re.compile(r"step (\d+): the loss is (nan|-?inf)")


class Happening(NamedTuple):
    """Something that happened at a step."""

    kind: Literal["checkpoint_saved", "loss_nonfinite"]
    step: int
    detail: str
    """The checkpoint's folder, or the loss in words."""


class TrainingWatch:
    """What a training writes from now on; what it had written before is no news, nor what a restart writes again.

    A training that starts anew takes the place of the one before, and all of its steps are news.
    """

    def __init__(self, paths: TrainDir) -> None:
        self._paths, self._tail = paths, MetricTail(paths.metrics)
        newest = last_checkpoint(paths)
        self._first_step = newest[0] if newest else 0
        self._seen: set[Happening] = set()
        self._lines: dict[int, dict[str, Any]] = {}

    def read(self) -> list[Happening]:
        """What has happened since the last call."""
        found: list[Happening] = []
        for record in self._tail.read():
            if record["kind"] == "start" and self._first_step:
                self._first_step, found = 0, []  # those were of the training before
                self._seen.clear()
                self._lines.clear()
            if record["step"] < self._first_step:
                continue
            if record["kind"] == "train":
                self._lines[record["step"]] = record
            if (happening := happening_of(record, self._paths)) and happening not in self._seen:
                self._seen.add(happening)
                found.append(happening)
        return [happening for happening in found if happening.step > self._first_step]

    def table(self, rows: int = 30) -> list[dict[str, str]]:
        """Key metrics over time: at most ``rows`` lines, evenly chosen, the last one among them."""
        return metrics_table([self._lines[step] for step in sorted(self._lines)], rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tail.close()


def happening_of(record: dict[str, Any], paths: TrainDir) -> Happening | None:
    """The happening that a line of metrics tells of, if any."""
    from kexue_train.train.checkpoint import checkpoint_name  # noqa: PLC0415  # loads torch

    match record:
        case {"kind": "checkpoint_saved", "step": step}:
            return Happening("checkpoint_saved", step, str(paths.checkpoints / checkpoint_name(step)))
        case {"kind": "rollback", "spike_step": step, "loss": str(loss)}:  # a number would be a jump
            return Happening("loss_nonfinite", step, loss)
        case {"kind": "warning", "symptom": "loss", "step": step, "message": message}:
            return Happening("loss_nonfinite", step, message)
        case _:
            return None


def ended_nonfinite(error: BaseException) -> Happening | None:
    """The same for a training that has ended with such a loss."""
    found = _ENDED.search(str(error))
    return Happening("loss_nonfinite", int(found[1]), found[2]) if found else None


def metrics_table(lines: Sequence[dict[str, Any]], rows: int) -> list[dict[str, str]]:
    """Lines of the kind "train" as rows of texts."""
    every = max(1, math.ceil(len(lines) / rows))
    chosen = lines[::-1][::every][::-1]
    return [{name: _text(name, line[name]) for name in _COLUMNS if line.get(name) is not None} for line in chosen]


def last_checkpoint(paths: TrainDir) -> tuple[int, Path] | None:
    """Step and folder of the newest checkpoint, from which a training goes on."""
    from kexue_train.train.checkpoint import list_checkpoints  # noqa: PLC0415  # loads torch

    newest = list_checkpoints(paths.checkpoints)[:1]
    return (int(newest[0].name.removeprefix("step-")), newest[0]) if newest else None


def _text(name: str, value: float) -> str:
    if name.endswith("accuracy"):
        return f"{value:.1%}"
    return f"{value:,.0f}" if name in ("step", "tokens_per_second") else f"{value:.4g}"
