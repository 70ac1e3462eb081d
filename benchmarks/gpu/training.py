"""Whole trainings: every engine and option, a kill, a spike, and memory that runs out."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.check import Bench, Check, CheckFailed, Figures, require
from benchmarks.gpu.watched_training import STEPS, Watched, make_job, require_sound, train
from kexue_train.foundation.errors import ResourceError
from kexue_train.train.job import JobConfig, TrainDir

_STAGES = (0, 1, 2, 3)
_LOSS_TOLERANCE = 2e-2
"""Relative, between engines and after a resume: kernels of a GPU add in another order each time."""
_OPTIONS: dict[str, dict[str, Any]] = {
    "lazy rows": {"optimizer": {"embeddings": "lazy"}},
    "bf16 states": {"optimizer": {"states": "bf16"}, "precision": "bf16"},
    "adamw": {"optimizer": {"name": "adamw", "lr": 1e-4}},
    "accumulated gradient": {"optimizer": {"accumulate": "gradient", "clip": {"norm": 1.0}}},
    "recompute": {"compute": {"engine": "torch", "recompute": "full"}},
    "micro-batch auto": {"micro_batch_size": "auto"},
}
_TOO_MUCH = 2**50
"""Bytes that no device has."""


def check_engine(bench: Bench) -> Figures:
    """Plain torch: losses fall, and end where they should; then every option of the optimizer."""
    figures: Figures = {"plain": require_sound(train(bench, make_job(bench), "plain"), "plain torch")}
    for name, changes in _OPTIONS.items():
        watched = train(bench, make_job(bench, **changes), "option")
        figures[name] = require_sound(watched, name)
        if changes.get("micro_batch_size") == "auto":
            figures[name]["rows"] = watched.paths.micro_batch_sizes.read_text(encoding="utf-8")
    return figures


def check_zero(bench: Bench) -> Figures:
    """DeepSpeed, stages 0 to 3 on one device: the losses of plain torch, and at most 4 bytes more per parameter."""
    plain = train(bench, make_job(bench), "plain")
    figures: Figures = {"torch": require_sound(plain, "plain torch")}
    parameters = plain.lines("start")[0]["parameters"]
    for stage in _STAGES:
        job = make_job(bench, compute={"engine": "deepspeed", "zero_stage": stage})
        watched = train_apart(bench, job, bench.fresh_folder(f"zero-{stage}"))
        figures[f"stage {stage}"] = require_sound(watched, f"ZeRO {stage}")
        off = _largest_difference(watched.losses, plain.losses)
        require(off <= _LOSS_TOLERANCE, f"ZeRO {stage}: losses are off by {off:.2g} from those of plain torch", figures)
        more = watched.peak_bytes - figures["stage 0"]["peak_bytes"]
        figures[f"stage {stage}"]["more_bytes_per_parameter"] = more / parameters
        require(
            bench.is_stand_in or more <= 4 * parameters,
            f"ZeRO {stage} takes {more / parameters:.1f} bytes/parameter more",
            figures,
        )
    return figures


def check_kill(bench: Bench) -> Figures:
    """A worker that is killed goes on from its last checkpoint, and ends as if nothing had been."""
    job = make_job(bench)
    whole = train(bench, job, "plain")
    killed = _interrupt(bench, job, bench.fresh_folder("killed"))
    watched = train(bench, job, killed.name, goes_on=True)
    resumed = watched.lines("resume")
    figures: Figures = {
        "resumed_after": [line["step"] for line in resumed],
        "off": _largest_difference(watched.losses, whole.losses),
    }
    require(bool(resumed), "the training began anew", figures)
    require(len(watched.losses) == STEPS, f"{len(watched.losses)} steps in the metrics, not {STEPS}", figures)
    tolerance = 1e-6 if bench.is_stand_in else _LOSS_TOLERANCE
    require(figures["off"] <= tolerance, f"losses are off by {figures['off']:.2g} after the resume", figures)
    return figures


def _interrupt(bench: Bench, job: JobConfig, folder: Path) -> Path:
    """Begin a training and end it without warning after its first checkpoint; return its folder."""
    if bench.is_stand_in:  # a process of its own would take longer than all the rest
        _break_off(bench, job, folder.name)
        return folder
    with _worker(bench, job, folder) as worker:
        while not (TrainDir(folder).checkpoints / "latest").exists() and worker.poll() is None:
            require(bench.seconds_left > 0, "no checkpoint within the time box")
            time.sleep(0.01)
    return folder


def train_apart(bench: Bench, job: JobConfig, folder: Path) -> Watched:
    """Train in a process of its own: DeepSpeed serves one training of a process."""
    with _worker(bench, job, folder) as worker:
        worker.wait(max(1.0, min(bench.seconds_left, 3600.0)))
    log = folder.with_suffix(".log").read_text(encoding="utf-8")
    require(worker.returncode == 0, f"{folder.name} ended with {worker.returncode}: {log[-1000:]}")
    watched = Watched(TrainDir(folder))
    watched.peak_bytes = max(line["memory_bytes"] for line in watched.lines())
    return watched


@contextmanager
def _worker(bench: Bench, job: JobConfig, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker; it is killed at the end of the block if it still runs."""
    config = folder.with_suffix(".yaml")
    config.write_text(job.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "kexue_train.train.worker", "--config", config, "--samples", bench.samples]
    with folder.with_suffix(".log").open("wb") as log:
        worker = subprocess.Popen([*command, "--out", folder], stdout=log, stderr=log)
        try:
            yield worker
        finally:
            worker.kill()
            worker.wait()


class _Killed(Exception):  # noqa: N818  # no error of anybody
    pass


def _break_off(bench: Bench, job: JobConfig, name: str) -> None:
    def kill(micro_step: int, sums: Tensor) -> Tensor:
        if micro_step == STEPS + 1:  # in the middle of a step
            raise _Killed
        return sums

    try:
        train(bench, job, name, disturb=kill)
    except _Killed:
        return
    raise CheckFailed("the training was not broken off")


def check_spike(bench: Bench) -> Figures:
    """A loss that is no number: back to the checkpoint, on with other rows, and nothing of before keeps its memory."""
    spoiled = STEPS + 2

    def spoil(micro_step: int, sums: Tensor) -> Tensor:
        return sums.index_fill(1, torch.tensor(0, device=sums.device), torch.nan) if micro_step == spoiled else sums

    watched = train(bench, make_job(bench), "spike", disturb=spoil, weigh=True)
    before, *after = watched.bytes_at_build
    figures = require_sound(watched, "after a spike")
    figures |= {"rollbacks": len(watched.lines("rollback")), "bytes_at_build": watched.bytes_at_build}
    require(figures["rollbacks"] == 1, f"{figures['rollbacks']} rollbacks after one bad loss", figures)
    growth = max(after) / before
    require(growth <= 1.05, f"{growth:.2f} times the memory after going back: the old model is kept", figures)
    return figures


def check_out_of_memory(bench: Bench) -> Figures:
    """Memory that runs out is refused with what to lower, and is there again for the next training."""

    def take_all(micro_step: int, sums: Tensor) -> Tensor:
        return sums if micro_step == 1 else torch.empty(_TOO_MUCH, dtype=torch.uint8, device=bench.device)

    figures: Figures = {}
    try:
        train(bench, make_job(bench), "memory", disturb=take_all)
    except ResourceError as error:
        figures["message"] = str(error)
    require("message" in figures, "the training went on", figures)
    missing = [
        word for word in ("out of memory", "micro_batch_size=", "recompute=full") if word not in figures["message"]
    ]
    require(not missing, f"the message does not tell {missing}: {figures['message']}", figures)
    figures["next"] = require_sound(train(bench, make_job(bench), "memory", goes_on=True), "the next training")
    return figures


def _largest_difference(found: list[float], expected: list[float]) -> float:
    require(len(found) == len(expected), f"{len(found)} losses, not {len(expected)}")
    return max(abs(a - b) / abs(b) if a == a else float("inf") for a, b in zip(found, expected, strict=True))


CHECKS = (
    Check(name="training", minutes=0.8, run=check_engine),
    Check(name="ZeRO", minutes=1.3, run=check_zero, packages=("deepspeed",)),
    Check(name="kill and resume", minutes=0.5, run=check_kill),
    Check(name="spike", minutes=0.2, run=check_spike),
    Check(name="out of memory", minutes=0.2, run=check_out_of_memory),
)
