"""What ended a training: written by the worker that failed, read by its launcher and by whoever watches."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.credentials import redact_values


class FailureKind(StrEnum):
    """What went wrong, as far as others act on it."""

    LOSS_NONFINITE = "loss_nonfinite"
    LOSS_SPIKE = "loss_spike"
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class WorkerFailure:
    """The error that ended a worker."""

    kind: FailureKind
    error: str
    """Name of its class."""
    message: str
    exit_code: int
    rank: int
    log: str
    """File that tells more."""
    step: int | None = None
    """The step that went wrong, if it was one."""
    value: str | None = None
    """What was wrong there, such as ``nan``."""

    def write(self, path: Path) -> None:
        """Write it to ``path``."""
        write_atomic(path, json.dumps(redact_values(asdict(self))) + "\n")


def read_failure(path: Path) -> WorkerFailure | None:
    """Read what ``WorkerFailure.write`` has written; None if there is nothing that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return WorkerFailure(**values | {"kind": FailureKind(values["kind"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
