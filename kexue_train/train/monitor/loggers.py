"""Where metrics go: to ``metrics.jsonl`` (for programs, the report and the terminal), and to TensorBoard and the like.

Each logger is opened and fed by a thread of its own: a server that is slow or away holds no training up and stops none.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue, SimpleQueue
from typing import Any, NamedTuple, Self

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ResourceError
from kexue_train.metrics.fields import SOURCE, Kind, Symptom
from kexue_train.metrics.file import MetricWriter
from kexue_train.train.job import TrainDir

logger = logging.getLogger(__name__)

_MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
_WAITING_LINES = 1000
_CLOSE_SECONDS = 30.0
_LONGEST_REASON = 300


class Start(NamedTuple):
    """What a logger is told when a training starts or resumes."""

    paths: TrainDir
    resumed_step: int
    """Later steps come again."""
    settings: Mapping[str, Any]
    """The configuration, in sections."""


class CurveLogger(NamedTuple):
    """A place that shows curves."""

    log: Callable[[int, Mapping[str, float]], Any]
    """Adds a point at a step to each curve, such as ``train/loss``."""
    close: Callable[[], Any]


def _open_tensorboard(start: Start) -> CurveLogger:
    """Write event files into the training's folder.

    A writer that has failed once, as on a full disk, never writes again; the next line is tried with a new one.
    """
    open_writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
    purge_step: int | None = start.resumed_step + 1
    board: Any = None

    def log(step: int, values: Mapping[str, float]) -> None:
        nonlocal board, purge_step
        board = board or open_writer(str(start.paths.tensorboard), purge_step=purge_step)
        try:
            for name, value in values.items():
                board.add_scalar(name, value, step)
            board.flush()
            purge_step = None
        except OSError:
            failed, board = board, None
            with suppress(OSError):
                failed.close()
            for file in start.paths.tensorboard.glob("events.*"):
                if not file.stat().st_size:  # it has not even taken the first record
                    file.unlink()
            raise

    return CurveLogger(log, lambda: board.close() if board else None)


def _open_mlflow(start: Start) -> CurveLogger:
    """Log to a run at $MLFLOW_TRACKING_URI or in ``mlflow.db`` in the training's folder; a resume continues it.

    Steps that are repeated after a resume are there twice, with equal values.
    """
    mlflow = importlib.import_module("mlflow")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{(start.paths.root / 'mlflow.db').absolute()}")
    file = start.paths.logs / "mlflow-run"
    run_id = _read(file)
    run = mlflow.start_run(run_id=run_id, run_name=None if run_id else start.paths.root.absolute().name)
    if run_id is None:
        write_atomic(file, run.info.run_id)
        mlflow.log_params(dict(_flat(start.settings)))
    return CurveLogger(lambda step, values: mlflow.log_metrics(dict(values), step=step), mlflow.end_run)


def _open_wandb(start: Start) -> CurveLogger:
    """Log to a run in the project $WANDB_PROJECT or "kexue_train"; a resume continues it.

    The server ignores steps that it had before a resume.
    """
    file = start.paths.logs / "wandb-run"
    run = importlib.import_module("wandb").init(
        project=os.environ.get("WANDB_PROJECT", "kexue_train"),
        id=_read(file),
        resume="allow",
        dir=str(start.paths.root),
        config=dict(start.settings),
    )
    write_atomic(file, run.id)
    return CurveLogger(lambda step, values: run.log(dict(values), step=step), run.finish)


_LOGGERS: dict[str, Callable[[Start], CurveLogger]] = {
    "tensorboard": _open_tensorboard,
    "mlflow": _open_mlflow,
    "wandb": _open_wandb,
}


def require_loggers(names: Iterable[str]) -> None:
    """Look whether the packages of these loggers are there, without loading them.

    Raises:
        ResourceError: If one is missing, with the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ResourceError(
                f"train.logging.loggers names {name}, but the package {name} is not installed here; install it with "
                f"pip install {name}, or take {name} out of train.logging.loggers"
            )


class BackgroundLogger:
    """One logger in its thread; returns at once from everything but ``close``.

    Attributes:
        complaints: What goes wrong, said the first time only.
    """

    def __init__(self, name: str, start: Start) -> None:
        importlib.import_module(_MODULES[name])  # here: half-loaded modules are no good to other threads
        self.complaints: SimpleQueue[str] = SimpleQueue()
        self._name, self._start, self._complained = name, start, False
        self._lines: Queue[tuple[int, Mapping[str, float]] | None] = Queue(_WAITING_LINES)
        self._thread = threading.Thread(target=self._run, name=f"logger-{name}", daemon=True)
        self._thread.start()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Add points later. While more lines wait than a slow server takes, further ones are left out."""
        try:
            self._lines.put_nowait((step, values))
        except Full:
            self._complain("it takes lines too slowly, so some are left out")

    def close(self) -> None:
        """Wait half a minute for what is under way."""
        try:
            self._lines.put(None, timeout=_CLOSE_SECONDS)
        except Full:
            return
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        if (opened := self._try(lambda: _LOGGERS[self._name](self._start))) is None:
            self._complain("it is off until training is started again")
            while self._lines.get() is not None:
                pass
            return
        while (line := self._lines.get()) is not None:
            self._try(lambda line=line: opened.log(*line))  # type: ignore[misc]  # mypy sees no type of a default
        self._try(opened.close)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # noqa: BLE001  # nothing that a server or its client does may end the training
            self._complain(f"{type(error).__name__}: {str(error).partition(chr(10))[0][:_LONGEST_REASON]}")
            return None

    def _complain(self, reason: str) -> None:
        logger.warning("%s: %s", self._name, reason)
        if not self._complained:
            self._complained = True
            self.complaints.put(f"{self._name} fails ({reason}); training goes on, and metrics.jsonl is whole")


class MetricLogger:
    """Writes metrics into the training's file and gives curves to the loggers.

    Args:
        paths: The training's folder.
        resumed_step: Step of the checkpoint; 0 at a fresh start. Lines after it are cut off.
        loggers: Names of ``train.logging.loggers``, which get the numbers of "train", "validation" and "source" lines.
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
        self._writer = MetricWriter(paths.metrics, resumed_step=resumed_step)
        self.resumed_seconds = self._writer.kept_seconds
        start = Start(paths, resumed_step, settings or {})
        self._loggers = [BackgroundLogger(name, start) for name in loggers]
        if self._writer.problem:
            self.warn(resumed_step, Symptom.METRICS, self._writer.problem)

    def write(self, kind: Kind, step: int, **values: Any) -> None:
        """Append one line, and "warning" lines of what loggers complain about."""
        self._writer.write(kind, step, values)
        if kind in (Kind.TRAIN, Kind.VALIDATION, Kind.SOURCE):
            place = f"{kind}/{values[SOURCE.key]}" if kind == Kind.SOURCE else kind
            numbers = {f"{place}/{n}": v for n, v in values.items() if v is not None and n != SOURCE.key}
            for logger in self._loggers:
                logger.log(step, numbers)
        for logger in self._loggers:
            while not logger.complaints.empty():
                self._writer.write(Kind.WARNING, step, {"symptom": Symptom.LOGGER, "message": logger.complaints.get()})

    def warn(self, step: int, symptom: Symptom, message: str) -> None:
        """Append a line that warns."""
        self.write(Kind.WARNING, step, symptom=symptom, message=message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for logger in self._loggers:
            logger.close()
        self._writer.close()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8").strip() if file.exists() else None
