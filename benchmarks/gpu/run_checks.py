"""Runs checks in a process apart, each in its time box, and writes what they found after every one of them."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from rich.console import Console

from benchmarks.gpu.check import Bench, Check, Outcome, run_check
from benchmarks.gpu.checks import CHECKS
from benchmarks.machine import describe_machine
from kexue_train.foundation.artifacts import write_atomic

console = Console(stderr=True, highlight=False, soft_wrap=True)
_START_SECONDS = 60.0
"""Granted beyond a time box for Python, torch and the device to start."""


def run_all(checks: Sequence[Check], bench: Bench, deadline: float) -> list[Outcome]:
    """Run the checks in order; time that one leaves over is shared by those after it."""
    outcomes: list[Outcome] = []
    with _Process(bench) as process:
        for index, check in enumerate(checks):
            share = check.minutes / sum(other.minutes for other in checks[index:])
            box = max(0.0, deadline - time.monotonic()) * share
            outcome = process.run(check, box)
            outcomes.append(outcome)
            found = _facts(bench) | {"checks": [asdict(outcome) for outcome in outcomes]}
            write_atomic(bench.out / "gpu.json", json.dumps(found, indent=2))
            console.print(f"{outcome.status:9} {outcome.name}, {outcome.seconds:.0f} s {outcome.message}")
    return outcomes


def _facts(bench: Bench) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "machine": describe_machine(bench.out),
        "device": torch.cuda.get_device_name() if not bench.is_stand_in else "cpu",
        "stand_in": bench.is_stand_in,
        "torch": torch.__version__,
    }


class _Process:
    """A process that runs checks, one after the other; ended and begun anew when one of them hangs or kills it."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._context = multiprocessing.get_context("spawn")  # a forked process could not use CUDA
        self._process: Any = None
        self._pipe: Connection | None = None

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, check: Check, seconds: float) -> Outcome:
        """Run a check for at most so many seconds."""
        started = time.monotonic()
        patience = seconds
        if self._pipe is None:
            self._start()
            patience += _START_SECONDS
        assert self._pipe is not None  # as started
        try:
            self._pipe.send((check.name, seconds))
            if self._pipe.poll(patience):
                return self._pipe.recv()  # type: ignore[no-any-return]  # the outcome
            message = f"took more than its {seconds:.0f} s and was ended"
        except (EOFError, OSError):
            self._process.join()
            message = f"its process ended with {self._process.exitcode}"
        self._end()
        taken = round(time.monotonic() - started, 2)
        return Outcome(name=check.name, status="failed", seconds=taken, message=message, figures={})

    def _start(self) -> None:
        self._pipe, other = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(self._bench, other), daemon=False)
        self._process.start()
        other.close()

    def _end(self) -> None:
        if self._pipe is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._pipe = None


def _serve(bench: Bench, pipe: Connection) -> None:
    """Run the checks that are asked for by name, until nobody asks."""
    checks = {check.name: check for check in CHECKS}
    while True:
        try:
            name, seconds = pipe.recv()
        except EOFError:
            return
        pipe.send(run_check(checks[name], replace(bench, deadline=time.monotonic() + seconds)))
