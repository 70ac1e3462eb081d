"""Start the workers again when they are lost, within a budget, and report what ends them; for every launcher."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kexue_train.foundation import errors
from kexue_train.foundation.artifacts import write_if_possible
from kexue_train.foundation.errors import KexueError, ResourceError, TrainingError
from kexue_train.foundation.runtime import rank
from kexue_train.metrics.failure import FailureKind, WorkerFailure, read_failure
from kexue_train.train.checkpoint import list_checkpoints
from kexue_train.train.device_errors import (
    BAD_ACCESS,
    BROKEN_DEVICE,
    PINNED_MEMORY,
    SHARED_MEMORY,
    find_fault,
    line_of,
)
from kexue_train.train.faults.spikes import EndedBySpikeError
from kexue_train.train.job import TrainDir

logger = logging.getLogger(__name__)

_OF_THIS_RANK = (PINNED_MEMORY, SHARED_MEMORY, BROKEN_DEVICE, BAD_ACCESS)

SECONDS_TO_COME_UP = 45.0
"""After which it is said that the workers have not met; loading the libraries takes most of a usual start."""


class WorkersLost(TrainingError):  # noqa: N818  # what happened
    """Workers have died of something that another start may not meet again."""


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
        paths.started.unlink(missing_ok=True)
        try:
            return start()
        except MachineDrained as drained:
            logger.warning("%s", drained)
        except WorkersLost as lost:
            restarts = restarts + 1 if _newest(paths) == newest else 1
            newest = _newest(paths)
            if restarts > max_restarts:
                raise TrainingError(
                    f"{lost}. That was after {max_restarts} restarts without a new checkpoint "
                    "(train.faults.max_restarts); once the cause is gone, run the same command again: "
                    "it resumes from the last checkpoint"
                ) from lost
            logger.warning("%s; restart %d of %d", lost, restarts, max_restarts)
        if paths.stop.exists():
            return None


class StartWatch:
    """Looks whether the workers of a start come up, and says once if they take long.

    Args:
        paths: The training's folder.
        state: Tells what is known of them, in words.
    """

    def __init__(self, paths: TrainDir, state: Callable[[], str]) -> None:
        self._paths, self._state = paths, state
        self._metrics = _version(paths.metrics)
        self._overdue_at = time.monotonic() + SECONDS_TO_COME_UP

    def have_come_up(self) -> bool:
        """Whether the workers have met: from then on they train, or say what is wrong."""
        # On a full disk the file may be missing.
        if self._paths.started.exists() or _version(self._paths.metrics) != self._metrics:
            return True
        if time.monotonic() > self._overdue_at:
            self._overdue_at = math.inf
            logger.warning(
                "the training workers have not met after %.0f s: %s; still waiting, a request to stop ends it at once",
                SECONDS_TO_COME_UP,
                self._state(),
            )
        return False


def say_started(paths: TrainDir) -> None:
    """Tell the launcher, on rank 0, that all workers have met."""
    if rank() == 0:
        write_if_possible(paths.started, str(os.getpid()))


def _version(file: Path) -> tuple[int, int] | None:
    """Return what changes when lines are added, or another file takes the place."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size


@contextmanager
def failure_reported(paths: TrainDir) -> Iterator[None]:
    """Report a ``KexueError`` in the block, log any other error, and let both pass."""
    try:
        yield
    except KexueError as error:
        report_failure(error, paths)
        raise
    except Exception:
        logger.exception("this worker ends")
        raise


@contextmanager
def device_faults_explained(device: torch.device, steps_done: Callable[[], int]) -> Iterator[None]:
    """Turn what a library says of a broken device or a limit of the machine into an error that says what to do.

    Out-of-memory errors pass, since their remedy depends on the configuration; lost ranks and hung collectives too: the
    rank that they come from has more to say.

    Raises:
        ResourceError: In place of a fault that would come back.
        WorkersLost: In place of one that may not, so that the workers are started again, on other devices if they can.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        fault = find_fault(text)
        if fault not in _OF_THIS_RANK:
            raise
        logger.exception("after step %d", steps_done())
        kind = ResourceError if fault.comes_back else WorkersLost
        raise kind(
            f"{fault.meaning}: {device} of {socket.gethostname()} after step {steps_done()} "
            f"({line_of(fault, text)}). {fault.remedy}"
        ) from error


def report_failure(error: KexueError, paths: TrainDir) -> None:
    """Write down what ended this worker, for a launcher that sees only exit codes, and for whoever watches."""
    kind, step, value = FailureKind.OTHER, None, None
    if isinstance(error, EndedBySpikeError):
        kind = FailureKind.LOSS_SPIKE if math.isfinite(error.loss) else FailureKind.LOSS_NONFINITE
        step, value = error.step, str(error.loss)
    failure = WorkerFailure(
        kind=kind,
        error=type(error).__name__,
        message=str(error),
        exit_code=error.exit_code,
        rank=rank(),
        log=str(paths.logs / f"rank-{rank()}.log"),
        step=step,
        value=value,
    )
    try:
        failure.write(paths.failure)
    except OSError as problem:
        logger.warning("%s: cannot be written (%s)", paths.failure, problem)


def raise_reported_failure(paths: TrainDir) -> None:
    """Raise the error that a worker has reported with ``report_failure``, if any did."""
    failure = read_failure(paths.failure)
    if failure is None:
        return
    kind = WorkersLost if failure.error == WorkersLost.__name__ else getattr(errors, failure.error, TrainingError)
    try:
        error = kind(failure.message)
    except TypeError:  # of a class that takes more
        error = TrainingError(failure.message)
    raise error


def _newest(paths: TrainDir) -> Path | None:
    return next(iter(list_checkpoints(paths.checkpoints)), None)
