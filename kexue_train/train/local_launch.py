"""Train in this process, on one device: no launcher, nothing to restart."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from kexue_train.train.job import JobConfig
from kexue_train.train.worker import run_worker


def train_here(config: JobConfig, samples: Path, out_dir: Path) -> None:
    """Be the one worker; returns when training has ended."""
    with preserve_process_state():
        run_worker(config, samples, out_dir, alone=True)


@contextmanager
def preserve_process_state() -> Iterator[None]:
    """Put back what a worker, which usually has a process to itself, changes in it."""
    root, environment, threads = logging.getLogger(), dict(os.environ), torch.get_num_threads()
    handlers, level = root.handlers[:], root.level
    try:
        root.handlers[:] = []  # else setting up the worker's log closes them
        yield
    finally:
        for opened in root.handlers:
            opened.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        os.environ.clear()
        os.environ.update(environment)
        torch.set_num_threads(threads)
