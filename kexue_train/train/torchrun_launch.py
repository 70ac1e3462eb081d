"""Start the training workers of this machine with torchrun; needs no Ray."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from kexue_train.foundation.errors import ResourceError
from kexue_train.train.device_errors import find_cause
from kexue_train.train.distributed import loopback_interfaces, without_launcher
from kexue_train.train.faults.watchdog import HUNG
from kexue_train.train.job import MIRROR_VARIABLE, JobConfig, TrainDir, write_job
from kexue_train.train.restarts import StartWatch, WorkersLost, raise_reported_failure, run_with_restarts

# torchrun, which ends when its parent dies, however that ends.
_RUN = """
import runpy
from kexue_train.foundation.operating_system import end_with_parent
end_with_parent()
runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
"""
_WORKER = ("-m", "kexue_train.train.worker")
_ENDING = re.compile(r"^\s*rank\s*:\s*(\d+).*\n\s*exitcode\s*:\s*(-?\d+)", re.MULTILINE)
_POLL_SECONDS = 0.2
_SECONDS_TO_END = 40.0  # torchrun gives its workers 30


def train_with_torchrun(config: JobConfig, samples: Path, out_dir: Path, *, port: int | None = None) -> None:
    """Run ``config.train.num_workers`` workers; returns when they have ended, their output in ``out_dir/logs``.

    They meet at 127.0.0.1 and talk over the loopback interface, whatever this machine is called. If a stop is asked for
    before they have met, they are ended at once.

    Args:
        config: The job.
        samples: Folder of sample shards.
        out_dir: Folder for checkpoints, metrics and logs.
        port: Rendezvous port on this machine; by default any free one.

    Raises:
        ResourceError: If the port is taken.
        TrainingError: If workers were lost more often than ``config.train.faults.max_restarts``.
        KexueError: What a worker found wrong.
    """
    if port is not None:
        _require_free(port)
    paths = TrainDir(out_dir)
    command = [
        sys.executable, "-c", _RUN, "--nnodes", "1", "--nproc-per-node", str(config.train.num_workers),
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port or 0}", "--local-addr", "127.0.0.1",
        *_WORKER, "--supervised",
        "--config", str(write_job(config, paths)), "--samples", str(samples), "--out", str(out_dir),
    ]  # fmt: skip
    mirror = {MIRROR_VARIABLE: uri} if (uri := config.train.checkpoints.mirror) else {}
    run_with_restarts(lambda: _run(command, paths, mirror), paths, max_restarts=config.train.faults.max_restarts)


def _run(command: list[str], paths: TrainDir, environment: dict[str, str]) -> None:
    paths.logs.mkdir(parents=True, exist_ok=True)
    paths.failure.unlink(missing_ok=True)
    log = paths.logs / "torchrun.log"
    with log.open("ab") as output:
        begin = output.tell()
        # In a session of its own, a Ctrl-C or a cancelled job reaches the driver alone, which knows what to do first.
        torchrun = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=without_launcher(os.environ) | loopback_interfaces() | {"PYTHONUNBUFFERED": "1"} | environment,
            start_new_session=True,
        )

    def said() -> str:
        return log.read_bytes()[begin:].decode(errors="replace")

    start = StartWatch(paths, lambda: _state(torchrun.pid, said()))
    try:
        while not start.have_come_up() and torchrun.poll() is None:
            if paths.stop.exists():
                _kill(torchrun)  # nothing is trained, so there is nothing to save
                return
            time.sleep(_POLL_SECONDS)
        code = torchrun.wait()
    except BaseException:
        if start.have_come_up():
            _end(torchrun)
        else:
            _kill(torchrun)
        raise
    if code != 0:
        raise_reported_failure(paths)
        raise WorkersLost(f"the training workers were lost: {_cause(said(), code)}; see {log}")


def _end(torchrun: subprocess.Popen[bytes]) -> None:
    torchrun.terminate()  # torchrun hands SIGTERM to the workers, which save a checkpoint if they can
    with contextlib.suppress(subprocess.TimeoutExpired):
        torchrun.wait(_SECONDS_TO_END)
    _kill(torchrun)


def _kill(torchrun: subprocess.Popen[bytes]) -> None:
    """End torchrun and all below it: workers that are still loading do not notice the end of their launcher."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(torchrun.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                process.kill()
    torchrun.kill()
    torchrun.wait()


def _state(torchrun: int, log: str) -> str:
    """What is known of workers that have not met."""
    try:
        workers = len(psutil.Process(torchrun).children())
    except psutil.Error:
        workers = 0
    lines = log.strip().splitlines()
    running = f"torchrun has started {workers} of them" if workers else "torchrun has started none of them"
    return f"{running}, and its last words are {lines[-1] if lines else 'none'!r}"


def _cause(log: str, code: int) -> str:
    """How the workers ended, by torchrun's last words, and the fault that one of them told of."""
    endings = {int(rank): int(ending) for rank, ending in _ENDING.findall(log)}
    if not endings:
        lines = log.strip().splitlines()
        return f"torchrun ended with code {code} and the words {lines[-1] if lines else 'none'!r}"
    ended = ", ".join(f"rank {rank} {_ending(ending)}" for rank, ending in sorted(endings.items()))
    cause = find_cause(log)
    return ended if cause is None else f"{ended}; one of them said: {cause}"


def _ending(code: int) -> str:
    if code == HUNG:
        return "hung and was ended by its watchdog"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ResourceError(
                f"port {port} on 127.0.0.1 cannot be used ({error.strerror}); give another with --port, or none for "
                "any free one"
            ) from None
