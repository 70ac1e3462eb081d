"""The machine the benchmark runs on: what it is, what is installed, and its page cache."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from kexue_train.foundation.runtime import available_cpus

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_PACKAGES = ("kexue_train", "numpy", "pyarrow", "duckdb", "ray", "datasets", "psutil")


def describe_machine(*folders: Path) -> dict[str, Any]:
    """CPU, cores, memory, kernel, and the file systems of ``folders``."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": available_cpus(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "file_system": ", ".join(" on ".join(file_system(folder)) for folder in folders),
        "free_disk_bytes": min(shutil.disk_usage(folder).free for folder in folders),
        "python": platform.python_version(),
    }


def file_system(folder: Path) -> tuple[str, str]:
    """Kind and device of the file system of ``folder``."""
    inside = [part for part in psutil.disk_partitions(all=True) if folder.resolve().is_relative_to(part.mountpoint)]
    mount = max(inside, key=lambda part: len(part.mountpoint))
    return mount.fstype, mount.device


def describe_versions(executables: list[str]) -> dict[str, str]:
    """Versions of the packages, and of the programs as far as they tell one; what is not installed is left out."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    for executable in executables:
        done = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=10, check=False)
        versions[Path(executable).name] = (done.stdout.splitlines() or ["tells no version"])[0]
    return versions


def fill_page_cache(source: Path) -> str:
    """Read ``source`` once; says so."""
    os.sync()
    with source.open("rb", buffering=0) as file:
        while file.read(2**22):
            pass
    return "input in the page cache"


def drop_page_cache(inputs: list[Path]) -> str:
    """Write out what is dirty and forget what was read, of everything if we may, else of ``inputs``; says which."""
    os.sync()
    if os.access(_DROP_CACHES, os.W_OK):
        try:
            _DROP_CACHES.write_text("3\n")
        except OSError:  # root in a container may not
            pass
        else:
            return "whole page cache dropped (drop_caches)"
    for path in inputs:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "page cache of the inputs dropped (posix_fadvise)"


def allows_direct_io(folder: Path) -> bool:
    """Whether the file system of ``folder`` takes O_DIRECT."""
    probe = folder / "direct-io-probe"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_DIRECT))
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True
