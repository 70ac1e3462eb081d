"""What this machine has, what a run would miss, and how to fix it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kexue_train.runtime import available_cpus, available_memory_bytes, format_size

_PACKAGES = {
    "cluster": ("ray",),
    "train": ("torch", "transformers", "safetensors", "tensorboard"),
    "deepspeed": ("deepspeed",),
    "report": ("jinja2", "plotly"),
    "flows": ("prefect",),
}
# Prefect 3.8 declares wider ranges than it works with: its server fails to import, or its scheduler fails in silence.
_BROKEN_FROM = {"fastapi": (0, 151), "sqlalchemy": (2, 1)}
_MIN_MEMORY_BYTES = 2 * 10**9
_MIN_DISK_BYTES = 2 * 10**9
_MIN_FILE_HANDLES = 1024


@dataclass(frozen=True)
class Check:
    """One finding; ``fix`` says what to do unless ``status`` is "ok"."""

    name: str
    status: Literal["ok", "warning", "failure"]
    finding: str
    fix: str = ""


def diagnose(*, run_dir: Path) -> list[Check]:
    """Look at everything a run needs; ``run_dir`` is where it would write."""
    checks: list[Callable[[], Check]] = [
        _python,
        _cpus,
        _memory,
        lambda: _disk(run_dir),
        lambda: _writable(run_dir),
        _shared_memory,
        _file_handles,
        _loopback,
        *(lambda extra=extra: _packages(extra) for extra in _PACKAGES),
        _prefect_companions,
        _devices,
    ]
    return [check() for check in checks]


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.platform != "linux":
        return Check("Python", "warning", found, "kexue_train is tested on Linux only")
    return Check("Python", "ok", found)


def _cpus() -> Check:
    cpus = available_cpus()
    return Check("CPUs", "ok" if cpus > 1 else "warning", str(cpus), "" if cpus > 1 else "a run works, but slowly")


def _memory() -> Check:
    free = available_memory_bytes()
    enough = free >= _MIN_MEMORY_BYTES
    fix = "" if enough else f"the demo needs about {format_size(_MIN_MEMORY_BYTES)}; close programs or raise the limit"
    return Check("memory", "ok" if enough else "failure", f"{format_size(free)} free", fix)


def _disk(run_dir: Path) -> Check:
    free = shutil.disk_usage(_existing(run_dir)).free
    enough = free >= _MIN_DISK_BYTES
    fix = "" if enough else f"a run needs twice its corpus, the demo {format_size(_MIN_DISK_BYTES)}; free some space"
    return Check("disk", "ok" if enough else "failure", f"{format_size(free)} free at {_existing(run_dir)}", fix)


def _writable(run_dir: Path) -> Check:
    folder = _existing(run_dir)
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        return Check("run folder", "ok", f"{folder} can be written")
    return Check("run folder", "failure", f"{folder} cannot be written", "change its owner or mode, or use --run-dir")


def _shared_memory() -> Check:
    folder = Path("/dev/shm")  # Ray's object store lives there
    if not folder.is_dir():
        return Check("shared memory", "warning", "no /dev/shm", "Ray falls back to files in /tmp, which is slower")
    free = shutil.disk_usage(folder).free
    if free < 256 * 2**20:
        return Check("shared memory", "warning", f"{format_size(free)} in /dev/shm", "docker run --shm-size=1g")
    return Check("shared memory", "ok", f"{format_size(free)} in /dev/shm")


def _file_handles() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = soft == resource.RLIM_INFINITY or soft >= _MIN_FILE_HANDLES
    return Check("open files", "ok" if enough else "warning", f"limit {soft}", "" if enough else "ulimit -n 4096")


def _loopback() -> Check:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return Check("loopback", "failure", str(error), "the workers talk over 127.0.0.1; allow it in the sandbox")
    return Check("loopback", "ok", "127.0.0.1 works")


def _packages(extra: str) -> Check:
    missing = [name for name in _PACKAGES[extra] if importlib.util.find_spec(name) is None]
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES[extra] if name not in missing)
    if missing:
        command = f"pip install 'kexue_train[{extra}]'"
        return Check(f"[{extra}]", "failure", f"missing: {', '.join(missing)}", command)
    return Check(f"[{extra}]", "ok", found)


def _prefect_companions() -> Check:
    found = []
    for name, limit in _BROKEN_FROM.items():
        if importlib.util.find_spec(name) is None:
            continue
        version = importlib.metadata.version(name)
        found.append(f"{name} {version}")
        if tuple(int(part) for part in version.split(".")[:2]) >= limit:
            below = f"{name}<{'.'.join(map(str, limit))}"
            return Check("Prefect's server", "failure", f"{name} {version} breaks it", f"pip install '{below}'")
    return Check("Prefect's server", "ok", ", ".join(found) or "not installed")


def _devices() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("devices", "failure", "torch is not installed", "pip install 'kexue_train[train]'")
    import torch  # noqa: PLC0415  # takes seconds, so only here

    if not torch.cuda.is_available():
        return Check("devices", "ok", "CPU only: good for the demo; a real run wants GPUs")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    bf16 = "with" if torch.cuda.is_bf16_supported() else "without"
    return Check("devices", "ok", f"{len(names)} x {names[0]}, {bf16} bfloat16")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
