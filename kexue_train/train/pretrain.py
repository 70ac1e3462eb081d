"""STAGE 4: sample shards -> trained checkpoints, resumed from the last one after any interruption."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from kexue_train.foundation.artifacts import (
    MANIFEST_NAME,
    Manifest,
    check_files,
    read_manifest,
    refuse_dangling_link,
)
from kexue_train.foundation.errors import ArtifactError, KexueError, StaleArtifactError, TrainingError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.train.checkpoint import list_checkpoints, step_of
from kexue_train.train.faults.stop import STOPPING_SIGNALS
from kexue_train.train.job import JobConfig, TrainDir, check_folder, prepare
from kexue_train.train.monitor.events import progress_reported
from kexue_train.train.monitor.loggers import require_loggers


def pretrain(
    config: JobConfig,
    samples: Path,
    out_dir: Path,
    *,
    launch: Callable[[], None],
    replace: bool = False,
    given: Path | None = None,
    progress: Progress = SILENT,
) -> Manifest:
    """Train until the last step is reached.

    Args:
        config: The job.
        samples: Folder of sample shards.
        out_dir: Folder for checkpoints, metrics and logs.
        launch: Runs the workers on this job and returns when they have ended.
        replace: Move a training of other settings aside (the reason goes to ``progress.note``) instead of refusing.
        given: The user's configuration file, which may lie in ``out_dir``.
        progress: Receives steps and metrics.

    Raises:
        ArtifactError: If ``out_dir`` holds other things and no training.
        ResourceError: If a package that ``train.logging.loggers`` names is missing.
        StaleArtifactError: If ``out_dir`` trains something else and ``replace`` is false.
        TrainingError: If the workers ended before the last step.
    """
    paths = TrainDir(out_dir)
    require_loggers(config.train.logging.loggers)
    refuse_dangling_link(out_dir, "the output folder")
    try:
        check_folder(config, samples, paths, given=given)
    except StaleArtifactError as stale:
        if not replace:
            raise
        progress.note(f"training again: {stale.reason}; the old training is kept in {_move_aside(out_dir)}")
    if manifest := _finished(out_dir):
        return manifest
    is_new = not paths.recipe.exists()
    prepare(config, samples, paths, given=given)
    if checkpoints := list_checkpoints(paths.checkpoints):
        progress.note(f"resumed from checkpoint {checkpoints[0].name}")
    done = step_of(checkpoints[0].name) if checkpoints else 0
    progress.update(done, config.train.steps, "steps")
    for file in (paths.stop, paths.failure):  # meant for the training before
        file.unlink(missing_ok=True)
    held = signals_held(paths.stop, config.train.faults.stop_timeout, progress)
    try:
        with held, progress_reported(paths.metrics, done, config.train.steps, progress):
            launch()
    except KexueError as error:
        if is_new and error.is_refusal and not paths.metrics.exists():
            _forget(paths)
        raise
    manifest = _finished(out_dir)
    if manifest is None:
        raise TrainingError(
            f"{out_dir}: training was stopped before step {config.train.steps}; its state is in {paths.checkpoints}. "
            "Run the same command again to resume it"
        )
    return manifest


def _finished(out_dir: Path) -> Manifest | None:
    if not (out_dir / MANIFEST_NAME).exists():
        return None
    try:
        manifest = read_manifest(out_dir)
        check_files(out_dir, manifest)
    except ArtifactError:  # it, or the last checkpoint, is gone or damaged: train on from the newest whole one
        (out_dir / MANIFEST_NAME).unlink()
        return None
    return manifest


def _forget(paths: TrainDir) -> None:
    """Remove what a training has left that was refused before its first line of metrics."""
    for path in (paths.recipe, paths.checkpoints, paths.logs, paths.deepspeed_config, paths.micro_batch_sizes):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with suppress(OSError):  # it is locked, or was there before
        paths.root.rmdir()


def _move_aside(out_dir: Path) -> Path:
    number = 1
    while (aside := out_dir.with_name(f"{out_dir.name}.replaced-{number}")).exists():
        number += 1
    out_dir.rename(aside)
    return aside


@contextmanager
def signals_held(file: Path, timeout: float, progress: Progress) -> Iterator[None]:
    """While the workers run, turn SIGTERM and Ctrl-C into the stop file ``file``; afterwards do what they meant.

    So the workers have saved a checkpoint when this process ends. A second signal, or the end of ``timeout`` seconds,
    raises out of the block. In another than the main thread nothing is held.

    Raises:
        TrainingError: In the block, when the workers have to be ended now.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    deadline = threading.Timer(timeout, lambda: os.kill(os.getpid(), received[0]))
    deadline.daemon = True

    def hold(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise TrainingError("the workers were ended before they had saved a checkpoint")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        deadline.start()
        progress.note("stopping: the workers save a checkpoint first; ask again to stop at once")

    before = {number: signal.signal(number, hold) for number in STOPPING_SIGNALS}
    try:
        yield
    finally:
        deadline.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            file.unlink(missing_ok=True)
            _deliver(received[0], before[signal.Signals(received[0])])


def _deliver(number: int, handler: Any) -> None:
    if handler is signal.SIG_DFL:
        raise SystemExit(128 + number)  # as the shell names it, but with all clean-up done
    if callable(handler):
        handler(number, None)
