"""What is written while training: ``metrics.jsonl`` (for programs, the report and the terminal), and the loggers."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor.loggers import BackgroundLogger, Start

_CURVES = ("train", "validation")


class MetricLogger:
    """Appends metrics; on a resume, lines after the checkpoint's step are cut off, since those steps are done again.

    Args:
        paths: The training's folder.
        resumed_step: Of the checkpoint; 0 at a fresh start.
        loggers: Names of ``train.loggers``, which get the numbers of "train" and "validation" lines.
        settings: The configuration, for them.

    Attributes:
        resumed_seconds: Training time of the lines kept.
    """

    def __init__(
        self,
        paths: TrainDir,
        *,
        resumed_step: int,
        loggers: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        kept = _keep_until(paths.metrics, resumed_step)
        self.resumed_seconds = max((record.get("seconds", 0.0) for record in kept), default=0.0)
        self._file = paths.metrics.open("a", encoding="utf-8")
        start = Start(paths, resumed_step, settings or {})
        self._loggers = [BackgroundLogger(name, start) for name in loggers]

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line, and "warning" lines of what loggers complain about."""
        self._append(kind, step, values)
        if kind in _CURVES:
            numbers = {f"{kind}/{name}": value for name, value in values.items() if value is not None}
            for logger in self._loggers:
                logger.log(step, numbers)
        for logger in self._loggers:
            while not logger.complaints.empty():
                warning = {"time": time.time(), "symptom": "logger", "message": logger.complaints.get()}
                self._append("warning", step, warning)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Append a line that tells what happened, such as "start" or "end", with the time."""
        self.write(kind, step, time=time.time(), **values)

    def _append(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for logger in self._loggers:
            logger.close()
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of ``metrics.jsonl``; a line torn by a kill is left out."""
    return _parse(path.read_text(encoding="utf-8").splitlines()) if path.exists() else []


class MetricTail:
    """The lines that are written to ``metrics.jsonl`` from now on, as they come.

    Every start of the workers puts a new file in its place, shortened to the checkpoint; it is then read from its
    beginning. The old one stays open until then, so that no new one can pass for it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file, self._rest = _open(path), ""
        if self._file:
            self._file.seek(0, os.SEEK_END)

    def read(self) -> list[dict[str, Any]]:
        """Whole lines since the last call."""
        lines = self._new_lines()
        if self._was_replaced():
            self.close()
            self._file, self._rest = _open(self._path), ""
            lines += self._new_lines()
        return _parse(lines)

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def _was_replaced(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return self._file is None or not os.path.samestat(found, os.fstat(self._file.fileno()))

    def _new_lines(self) -> list[str]:
        *lines, self._rest = (self._rest + (self._file.read() if self._file else "")).split("\n")
        return lines


def _open(path: Path) -> TextIO | None:
    try:
        return path.open(encoding="utf-8")
    except FileNotFoundError:
        return None


def _parse(lines: Sequence[str]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept
