"""What is written while training: ``metrics.jsonl`` (for programs and the report) and TensorBoard event files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kexue_train.artifacts import write_atomic
from kexue_train.train.job import TrainDir


class MetricLogger:
    """Appends metrics; on a resume, lines after the checkpoint's step are cut off, since those steps are done again.

    Attributes:
        resumed_seconds: Training time of the lines kept.
    """

    def __init__(self, paths: TrainDir, *, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # takes a second; only rank 0 needs it

        kept = _keep_until(paths.metrics, resumed_step)
        self.resumed_seconds = max((record.get("seconds", 0.0) for record in kept), default=0.0)
        self._file = paths.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(paths.tensorboard), purge_step=resumed_step + 1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append one line; numbers of "train" and "validation" lines also go to TensorBoard."""
        record = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if kind in ("train", "validation"):
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Append "start", "resume", "stop" or "end" with the time."""
        self.write(kind, step, time=time.time(), **values)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of ``metrics.jsonl``; a line torn by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def _keep_until(path: Path, step: int) -> list[dict[str, Any]]:
    kept = [record for record in read_metrics(path) if record["step"] <= step]
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept
