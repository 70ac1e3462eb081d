"""Starts the workers again when they are lost, within a budget; the same for every launcher."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

from kexue_train.foundation import errors
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import KexueError, TrainingError
from kexue_train.train.checkpoint import list_checkpoints
from kexue_train.train.job import TrainDir

logger = logging.getLogger(__name__)


class WorkersLost(TrainingError):  # noqa: N818  # what happened
    """Workers have died, of what another start may be spared."""


class MachineDrained(TrainingError):  # noqa: N818  # what happened
    """Workers have saved a checkpoint and ended, since a machine is about to be taken away."""


def run_with_restarts(start: Callable[[], None], paths: TrainDir, *, max_restarts: int) -> None:
    """Call ``start``, which runs the workers to their end, again after each ``WorkersLost``.

    ``max_restarts`` counts restarts without a new checkpoint between them: a training of weeks survives any number of
    faults, but not one that comes back. Once a stop is asked for, nothing is started again.

    Raises:
        TrainingError: If the budget is used up.
        KexueError: What the workers raised themselves; they would raise it again.
    """
    restarts, newest = 0, _newest(paths)
    while True:
        try:
            return start()
        except MachineDrained as drained:
            logger.warning("%s", drained)
        except WorkersLost as lost:
            restarts = restarts + 1 if _newest(paths) == newest else 1
            newest = _newest(paths)
            if restarts > max_restarts:
                raise TrainingError(
                    f"{lost}. That was after {max_restarts} restarts without a new checkpoint (train.max_restarts); "
                    "once the cause is gone, run the same command again: it resumes from the last checkpoint"
                ) from lost
            logger.warning("%s; restart %d of %d", lost, restarts, max_restarts)
        if paths.stop.exists():
            return None


def tell_launcher(error: KexueError, paths: TrainDir) -> None:
    """Write down, for a launcher that sees only exit codes, what ended this worker."""
    write_atomic(paths.failure, json.dumps({"kind": type(error).__name__, "message": str(error)}))


def raise_told(paths: TrainDir) -> None:
    """Raise what a worker told with ``tell_launcher``, if any did."""
    if not paths.failure.exists():
        return
    told = json.loads(paths.failure.read_text(encoding="utf-8"))
    kind = getattr(errors, told["kind"], TrainingError)
    try:
        error = kind(told["message"])
    except TypeError:  # of a class that takes more
        error = TrainingError(told["message"])
    raise error


def _newest(paths: TrainDir) -> Path | None:
    return next(iter(list_checkpoints(paths.checkpoints)), None)
