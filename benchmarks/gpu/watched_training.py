"""Trainings in this process, with somebody between the loop and its engine who looks at memory and can do harm."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.gpu.check import Bench, require
from benchmarks.gpu.made_up import model_config
from kexue_train.metrics.file import read_metrics
from kexue_train.train import build_training
from kexue_train.train.checkpoint import FullTensors
from kexue_train.train.engine import Engine, build_engine
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.launch import train_here
from kexue_train.train.monitor.flops import PeakRates

STEPS = 8
Disturbance = Callable[[int, Tensor], Tensor]
"""Gets the number of a micro-step, from 1, and the scores of its heads, [heads, 3]; returns what the loop sees."""


@dataclass
class Watched:
    """What was seen of a training."""

    paths: TrainDir
    micro_steps: int = 0
    bytes_at_build: list[int] = field(default_factory=list)
    """Whenever an engine was built: what lives on the device then, which is model and optimizer."""
    peak_bytes: int = 0
    """After or, on a GPU, within micro-steps."""

    def lines(self, kind: str = "train") -> list[dict[str, Any]]:
        """Return the lines of metrics of this kind."""
        return [line for line in read_metrics(self.paths.metrics) if line["kind"] == kind]

    @property
    def losses(self) -> list[float]:
        """Of every step, as metrics tell them."""
        return [line["loss"] for line in self.lines()]


def make_job(bench: Bench, *, optimizer: dict[str, Any] | None = None, **train: Any) -> JobConfig:
    """Return a job of eight steps of two micro-batches with a checkpoint after every second one; plain torch."""
    rows = bench.sizes.rows
    settings = {
        "steps": STEPS, "global_batch_size": 2 * rows, "micro_batch_size": rows, "device": bench.device.type,
        "precision": "fp32" if bench.is_stand_in else "bf16",  # a CPU without units for bf16 takes ten times as long
        "compute": {"engine": "torch"},
        "workers": {"launcher": "local", "threads_per_worker": 1 if bench.is_stand_in else None},
        "logging": {"log_every": 1, "validate_every": STEPS, "loggers": []}, "checkpoints": {"every": 2}, **train,
    }  # fmt: skip
    steps = {"lr": 1e-3, "schedule": {"2": 1.0}, **(optimizer or {})}
    values = {"model": model_config(bench).model_dump(), "optimizer": steps, "train": settings}
    return JobConfig.parse(values, where="benchmarks.gpu")


def train(
    bench: Bench,
    job: JobConfig,
    name: str,
    *,
    disturb: Disturbance | None = None,
    goes_on: bool = False,
    weigh: bool = False,
) -> Watched:
    """Train to the end.

    Args:
        bench: Where.
        job: What.
        name: Of the folder.
        disturb: Does harm.
        goes_on: In the folder of an earlier training of this name.
        weigh: Fill ``bytes_at_build``, which takes a while.
    """
    folder = bench.out / "work" / name if goes_on else bench.fresh_folder(name)
    watched = Watched(TrainDir(folder))
    if not bench.is_stand_in:
        torch.cuda.reset_peak_memory_stats(bench.device)

    def build(*arguments: Any) -> Engine:
        if weigh:
            watched.bytes_at_build.append(living_bytes(bench.device))
        return _Watcher(build_engine(*arguments), watched, bench, disturb)

    # These trainings tell nothing about speed, so the device's own is not measured first.
    rates = PeakRates(1.0, None)
    with (
        mock.patch.object(build_training, "build_engine", build),
        mock.patch.object(build_training, "peak_rates", return_value=rates),
    ):
        train_here(job, bench.samples, folder)
    return watched


def require_sound(watched: Watched, what: str) -> dict[str, Any]:
    """Return the first and last loss; the last one is finite and no higher than the first, but for a little noise."""
    losses = watched.losses
    figures = {"first_loss": losses[0], "last_loss": losses[-1], "peak_bytes": watched.peak_bytes}
    require(losses[-1] < losses[0] + 0.2, f"{what}: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}", figures)
    return figures


def living_bytes(device: torch.device) -> int:
    """Return what all tensors on the device take; on a CPU, where checkpoints are copied to, what parameters take."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    found = {id(thing): thing.nbytes for thing in gc.get_objects() if type(thing) is torch.nn.Parameter}
    return sum(found.values())


class _Watcher:
    """An ``Engine`` around another."""

    def __init__(self, inner: Engine, watched: Watched, bench: Bench, disturb: Disturbance | None) -> None:
        self._inner, self._watched, self._bench, self._disturb = inner, watched, bench, disturb

    def micro_step(self, batch: dict[str, Tensor]) -> Tensor:
        """See ``Engine``."""
        sums, watched = self._inner.micro_step(batch), self._watched
        watched.micro_steps += 1
        if not self._bench.is_stand_in:
            watched.peak_bytes = max(watched.peak_bytes, torch.cuda.max_memory_allocated(self._bench.device))
        return self._disturb(watched.micro_steps, sums) if self._disturb else sums

    def full_tensors(self) -> FullTensors:
        """See ``Engine``."""
        return self._inner.full_tensors()

    def full_parameter(self, param: Tensor) -> Tensor:
        """See ``Engine``."""
        return self._inner.full_parameter(param)


def checkpoint_of(watched: Watched, step: int = STEPS) -> Path:
    """Return the folder of a checkpoint that a training has saved."""
    return watched.paths.checkpoints / f"step-{step:08d}"
