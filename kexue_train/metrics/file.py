"""The file of metrics, JSON lines: one writer, one reader of the whole, one reader of what is being added.

Power cuts, full disks and other programs leave lines in it that no training has written. Every reader leaves them out
and says how many there were.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.credentials import redact_values
from kexue_train.metrics.fields import LINES, SECONDS, Kind, Record, Symptom

logger = logging.getLogger(__name__)


class MetricLines(NamedTuple):
    """The lines of a file."""

    records: list[Record]
    foreign: list[str]
    """For each whole line that is ignored, what is wrong with it."""
    is_torn: bool = False
    """Whether the last line is not whole: it is being written, or its writer was killed."""


def read_metric_lines(path: Path) -> MetricLines:
    """Read the whole file; a missing one has no lines."""
    try:
        *whole, rest = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return MetricLines([], [])
    records, foreign = _parse(whole)
    return MetricLines(records, foreign, bool(rest))


def read_metrics(path: Path) -> list[Record]:
    """Return the records of all whole lines that a training has written."""
    return read_metric_lines(path).records


def describe_foreign(path: Path, foreign: Sequence[str]) -> str:
    """Say that lines of ``path`` are ignored, and why the first one is."""
    number = f"{len(foreign):,} line{'s are' if len(foreign) > 1 else ' is'}"
    return f"{path}: {number} not from a training and ignored (the first: {foreign[0]})"


class MetricWriter:
    """Appends lines; on a resume it first cuts off those after the checkpoint's step, since those steps are repeated.

    A disk that is full for a while loses lines, which the next line that can be written says, but does not end the
    training.

    Args:
        path: The file.
        resumed_step: Step of the checkpoint; 0 at a fresh start.

    Attributes:
        kept_seconds: Training time up to the lines kept.
        problem: What was wrong with the file, in words; None if nothing, or if only a kill has torn the last line.
    """

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        found = read_metric_lines(path)
        kept = [record for record in found.records if record["step"] <= resumed_step]
        try:
            write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
        except OSError as error:
            logger.warning("%s: cannot be rewritten (%s); its end is cut off in place", path, error)
            _cut_after(path, resumed_step)
        self.kept_seconds = max((SECONDS.amount(r) for r in kept if r["kind"] == Kind.TRAIN), default=0.0)
        self.problem = describe_foreign(path, found.foreign) if found.foreign else None
        self._path, self._file = path, path.open("ab", buffering=0)
        self._num_lost = 0

    def write(self, kind: Kind, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; what happened, rather than a point of a curve, is given the time."""
        timed = {} if kind in (Kind.TRAIN, Kind.VALIDATION) else {"time": time.time()}
        if self._num_lost:
            message = f"{self._path}: {self._num_lost:,} lines are missing, which could not be written"
            lost = {
                "kind": Kind.WARNING,
                "step": step,
                "time": time.time(),
                "symptom": Symptom.METRICS,
                "message": message,
            }
            if not self._append(lost):
                self._num_lost += 1
                return
            self._num_lost = 0
        self._num_lost += not self._append({"kind": kind, "step": step} | timed | dict(values))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _append(self, record: Record) -> bool:
        """Write a line or nothing of it; return whether it is written."""
        line, end = (json.dumps(redact_values(record)) + "\n").encode(), os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) == len(line):
                return True
            reason = "the disk is full"
        except OSError as error:
            reason = str(error)
        os.ftruncate(self._file.fileno(), end)
        if not self._num_lost:
            logger.warning("%s: a line cannot be written (%s); training continues", self._path, reason)
        return False


class MetricTail:
    """Gives the lines that are written from now on, as they come.

    Every start of the workers puts a new file in its place, shortened to the checkpoint; it is then read from its
    beginning. The old one stays open until then, so that no new one can pass for it.

    Attributes:
        foreign: What is wrong with lines that were ignored since ``read`` was called last.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, _open(path)
        self._end = os.fstat(self._file.fileno()).st_size if self._file else 0
        self.foreign: list[str] = []

    def read(self) -> list[Record]:
        """Return the whole lines since the last call."""
        lines = self._new_lines()
        if self._was_replaced():
            self.close()
            self._file, self._end = _open(self._path), 0
            lines += self._new_lines()
        records, self.foreign = _parse(lines)
        return records

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

    def _new_lines(self) -> list[bytes]:
        """Read from the end of the last whole line: what comes after it may be cut off again."""
        if not self._file:
            return []
        if os.fstat(self._file.fileno()).st_size < self._end:
            self._end = 0  # it was shortened in place, to the checkpoint
        self._file.seek(self._end)
        *whole, _ = self._file.read().split(b"\n")
        self._end += sum(len(line) + 1 for line in whole)
        return whole


def _cut_after(path: Path, step: int) -> None:
    """Cut the file off before the first line of a later step or a torn line, which needs no room on the disk."""
    end = 0
    with path.open("ab") as file:
        for line in path.read_bytes().splitlines(keepends=True):
            records, _ = _parse([line.removesuffix(b"\n")])
            if not line.endswith(b"\n") or any(record["step"] > step for record in records):
                break
            end += len(line)
        file.truncate(end)


def _open(path: Path) -> BinaryIO | None:
    try:
        return path.open("rb")
    except FileNotFoundError:
        return None


def _parse(lines: Sequence[bytes]) -> tuple[list[Record], list[str]]:
    """Return the records, and what is wrong with the lines that hold none."""
    records: list[Record] = []
    foreign: list[str] = []
    for line in lines:
        try:
            records.append(_parse_line(line))
        except (ValueError, RecursionError) as error:
            foreign.append(str(error) if isinstance(error, _ForeignLineError) else "not JSON")
    return records, foreign


class _ForeignLineError(ValueError):
    """No training has written the line; the message says what is wrong with it."""


def _parse_line(line: bytes) -> Record:
    record = json.loads(line.decode())
    if not isinstance(record, dict):
        raise _ForeignLineError("not an object")
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in LINES:
        raise _ForeignLineError("of no known kind")
    step = record.get("step")
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 2**63:
        raise _ForeignLineError("without a step")
    if b"\\u" in line:
        json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair could not be shown anywhere
    record["kind"] = Kind(kind)
    return record
