"""Start the training workers of this machine with torchrun; needs no Ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from kexue_train.errors import ResourceError, TrainingError
from kexue_train.train.job import JobConfig
from kexue_train.train.worker import STOPPED

# torchrun, after asking the kernel (Linux) to kill it when its parent dies, however that ends.
_RUN = """
import ctypes, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
"""


def train_with_torchrun(
    config: JobConfig, config_file: Path, samples: Path, out_dir: Path, *, port: int | None = None
) -> None:
    """Run ``config.train.num_workers`` workers; returns when they have ended, their output in ``out_dir/logs``.

    Args:
        config: The job.
        config_file: The same job as a YAML file, for the workers to read.
        samples: Folder of sample shards.
        out_dir: Folder for checkpoints, metrics and logs.
        port: Rendezvous port on this machine; by default any free one.

    Raises:
        ResourceError: If the port is taken.
        TrainingError: If a worker failed.
    """
    rendezvous = ["--standalone"] if port is None else ["--master-addr", "127.0.0.1", "--master-port", str(_free(port))]
    command = [
        sys.executable, "-c", _RUN, *rendezvous,
        "--nproc-per-node", str(config.train.num_workers), "--max-restarts", str(config.train.max_restarts),
        "-m", "kexue_train.train.worker",
        "--config", str(config_file), "--samples", str(samples), "--out", str(out_dir),
    ]  # fmt: skip
    log = out_dir / "logs" / "torchrun.log"
    # Without this variable a restart of DeepSpeed workers by torchrun hangs when they meet again.
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONUNBUFFERED": "1"}
    with log.open("ab") as output:
        worker = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        code = worker.wait()
    except BaseException:
        worker.terminate()  # torchrun hands SIGTERM to the workers, which save a checkpoint
        worker.wait()
        raise
    if code not in (0, STOPPED):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise TrainingError(
            f"the training workers ended with code {code}; last line of {log}: {lines[-1] if lines else 'none'!r}. "
            "Run the same command again: it resumes from the last checkpoint"
        )


def _free(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ResourceError(
                f"port {port} on 127.0.0.1 cannot be used ({error.strerror}); give another with --port, or none for "
                "any free one"
            ) from None
    return port
