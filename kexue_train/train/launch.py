"""Start the training workers as ``train.workers.launcher`` says; every launcher is one entry of a table."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kexue_train.executor.config import ExecutionConfig
from kexue_train.train.config import LauncherName
from kexue_train.train.job import JobConfig


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What a launcher may need to know."""

    job: JobConfig
    samples: Path
    """Folder of sample shards."""
    out_dir: Path
    """Folder for checkpoints, metrics and logs."""
    execution: ExecutionConfig
    port: int | None = None
    """Rendezvous port of torchrun; None: any free one."""


def _start_with_ray(launch: Launch) -> None:
    from kexue_train.train.ray_launch import train_on_ray  # noqa: PLC0415  # needs Ray

    train_on_ray(launch.job, launch.samples, launch.out_dir, execution=launch.execution)


def _start_with_torchrun(launch: Launch) -> None:
    from kexue_train.train.torchrun_launch import train_with_torchrun  # noqa: PLC0415  # needs torch

    train_with_torchrun(launch.job, launch.samples, launch.out_dir, port=launch.port)


def _start_here(launch: Launch) -> None:
    train_here(launch.job, launch.samples, launch.out_dir)


LAUNCHERS: Mapping[LauncherName, Callable[[Launch], None]] = {
    "ray": _start_with_ray,
    "torchrun": _start_with_torchrun,
    "local": _start_here,
}
"""Each launcher runs the workers and returns when they have ended."""


def launcher_of(
    job: JobConfig,
    samples: Path,
    out_dir: Path,
    execution: ExecutionConfig,
    port: int | None = None,
) -> Callable[[], None]:
    """Return what starts the workers of ``job``, by ``train.workers.launcher``; see ``Launch`` for the arguments."""
    launch = Launch(job=job, samples=samples, out_dir=out_dir, execution=execution, port=port)
    return partial(_start, launch)


def _start(launch: Launch) -> None:
    with _without_other_launchers():
        LAUNCHERS[launch.job.train.workers.launcher](launch)


@contextmanager
def _without_other_launchers() -> Iterator[None]:
    """Take out of the environment, which the workers inherit, what a launcher around this process has said."""
    from kexue_train.train.distributed import without_launcher  # noqa: PLC0415  # needs torch

    hidden = {name: os.environ.pop(name) for name in os.environ.keys() - without_launcher(os.environ).keys()}
    try:
        yield
    finally:
        os.environ.update(hidden)


def train_here(config: JobConfig, samples: Path, out_dir: Path) -> None:
    """Be the one worker, in this process: nothing to launch, nothing to restart. Return when training has ended."""
    from kexue_train.train.worker import run_worker  # noqa: PLC0415  # needs torch

    with preserve_process_state():
        run_worker(config, samples, out_dir, alone=True)


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Restore afterwards what a worker, which usually has a process to itself, changes in this process."""
    import torch  # noqa: PLC0415  # the other launchers load it in the workers

    root, environment, threads = logging.getLogger(), dict(os.environ), torch.get_num_threads()
    handlers, level = root.handlers[:], root.level
    try:
        root.handlers[:] = []  # otherwise setting up the worker's log would close them
        yield
    finally:
        for opened in root.handlers:
            opened.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
