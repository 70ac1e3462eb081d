"""What the machine is, whether it is fit, and the tests that need a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.gpu.check import Bench, Check, Figures, require
from kexue_train.cli import doctor

_PACKAGES = ("torch", "triton", "transformers", "deepspeed", "ray", "prefect", "pyarrow", "numpy")
_REPOSITORY = Path(__file__).resolve().parents[2]
GPU_TESTS = ("tests/model", "tests/optim", "tests/train")
"""Where tests marked ``gpu`` lie."""


def check_machine(bench: Bench) -> Figures:
    """Versions, the GPU, and what ``kexue doctor`` says; its failures are failures."""
    figures: Figures = {"versions": {name: _version(name) for name in _PACKAGES}, "cuda": torch.version.cuda}
    if not bench.is_stand_in:
        device = torch.cuda.get_device_properties(bench.device)
        figures |= {
            "gpu": device.name, "capability": f"{device.major}.{device.minor}", "memory_bytes": device.total_memory,
            "gpus": torch.cuda.device_count(),
        }  # fmt: skip
    found = doctor.diagnose(run_dir=bench.out)
    figures["doctor"] = {check.name: check.finding for check in found if check.status != "ok"}
    failures = [f"{check.name}: {check.finding}" for check in found if check.status == "failure"]
    require(not failures, f"kexue doctor: {'; '.join(failures)}", figures)
    return figures


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_gpu_tests(bench: Bench) -> Figures:
    """``pytest -m gpu``; none may be skipped on a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-m", "gpu", "-p", "no:cacheprovider", *GPU_TESTS]
    # The tests hide GPUs from themselves unless they are told of some.
    shown = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "" if bench.is_stand_in else "0")}
    done = subprocess.run(
        command, cwd=_REPOSITORY, env=os.environ | shown, capture_output=True, text=True, check=False,
        timeout=max(1.0, min(bench.seconds_left, 3600.0)),
    )  # fmt: skip
    last = (done.stdout.strip().splitlines() or [done.stderr[-300:]])[-1]
    figures = {"result": last}
    require(done.returncode == 0, f"pytest ended with {done.returncode}: {done.stdout[-1500:]}", figures)
    require(bench.is_stand_in or "skipped" not in last, f"tests were skipped: {last}", figures)
    return figures


CHECKS = (
    Check(name="machine", minutes=0.3, run=check_machine),
    Check(
        name="tests marked gpu", minutes=0.9, run=check_gpu_tests,
        packages=("pytest", "pytest_timeout", "xdist", "hypothesis"),
    ),
)  # fmt: skip
