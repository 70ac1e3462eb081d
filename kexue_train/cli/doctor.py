"""What this machine has, what a run would miss here, and how to fix it. Looks only; changes nothing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from kexue_train.foundation.operating_system import lock_file, open_files_limit
from kexue_train.foundation.runtime import available_cpus, available_memory_bytes, format_size

GB = 10**9
_STAGES_OF_EXTRA = {
    "train": "train, export and evaluate",
    "deepspeed": "training with train.compute.engine=deepspeed (without it: train.compute.engine=torch)",
    "report": "report",
    "cluster": "Ray (without it: local processes and train.workers.launcher=torchrun)",
    "flows": "make pretrain as a Prefect flow (without it: kexue pipeline)",
    "optimizers": "the optimizers lamb and lion",
}
_OPTIONAL_EXTRAS = ("deepspeed", "cluster", "flows", "optimizers")
_WHY = {
    "fastapi": "others break Prefect's server",
    "sqlalchemy": "2.1 breaks Prefect's schedules",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    status: Literal["ok", "warning", "failure"]
    """``failure``: a run would fail here; ``warning``: it would be slow, or a part of the project cannot be used."""
    finding: str
    fix: str = ""
    """What to do about it; empty when nothing needs doing."""


def diagnose(*, run_dir: Path | None = None) -> list[Check]:
    """Look at everything a run needs; takes a few seconds, nearly all of it for loading torch.

    Args:
        run_dir: Where a run would write (default: ``runs`` here); need not exist.
    """
    folder = (run_dir or Path("runs")).absolute()
    return [
        _check_python(),
        _check_system(),
        _check_cpus(),
        _check_memory(),
        _check_shared_memory(),
        _check_run_folder(folder),
        _check_disk(folder),
        _check_open_files(),
        _check_loopback(),
        _check_clock(),
        *_check_packages(),
        *_check_torch(),
        _check_compiler(),
    ]


def _check_python() -> Check:
    # An older one than the package allows could not even import this file.
    return Check("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def _check_system() -> Check:
    found = f"{platform.system()} {platform.release()} {platform.machine()}"
    if platform.system() != "Linux":
        return Check("system", "warning", found, "only Linux is tested; a container with Linux works anywhere")
    return Check("system", "ok", found)


def _check_cpus() -> Check:
    cpus = available_cpus()
    if cpus < 2:
        fix = "two training workers will share it; set train.num_workers=1, or give the container more CPUs"
        return Check("CPUs", "warning", "1 for this process", fix)
    return Check("CPUs", "ok", f"{cpus} for this process")


def _check_memory() -> Check:
    free = available_memory_bytes()
    found = f"{format_size(free)} free for this process"
    if free < 1.5 * GB:
        fix = "the demo needs about 2 GB: end other programs, or raise the container's memory limit"
        return Check("memory", "failure", found, fix)
    if free < 4 * GB:
        return Check("memory", "warning", found, "enough for the demo; the other configurations need 4 GB or more")
    return Check("memory", "ok", found)


def _check_shared_memory(path: Path = Path("/dev/shm")) -> Check:
    if not path.is_dir():
        return Check("shared memory", "warning", f"no {path}", "Ray will use slower files in its temporary folder")
    size = shutil.disk_usage(path).total
    found = f"{format_size(size)} at {path}"
    if size < 0.5 * GB:
        return Check("shared memory", "warning", found, "Ray needs more: start the container with --shm-size=2g")
    return Check("shared memory", "ok", found)


def _check_run_folder(folder: Path) -> Check:
    existing = _nearest_existing(folder)
    if not existing.is_dir():
        return Check("run folder", "failure", f"{existing} is a file", "give another folder with --run-dir")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            lock_file(file.fileno())
    except OSError as error:
        fix = "give a folder that you may write and whose file system has locks with --run-dir"
        return Check("run folder", "failure", f"{existing} cannot be written or locked ({error.strerror})", fix)
    return Check("run folder", "ok", f"{folder} can be written")


def _check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(_nearest_existing(folder)).free
    found = f"{format_size(free)} free at {folder}"
    if free < 1 * GB:
        return Check(
            "disk", "failure", found, "the demo writes about 1 GB: free space there, or give another --run-dir"
        )
    if free < 10 * GB:
        fix = "enough for the demo; the shuffle of a corpus needs about three times its size"
        return Check("disk", "warning", found, fix)
    return Check("disk", "ok", found)


def _check_open_files() -> Check:
    limit, highest = open_files_limit()
    found = f"{'no limit' if limit == sys.maxsize else limit} at once"
    if limit < 1024:
        reach = "" if highest >= 4096 else f" (an administrator must raise the limit {highest})"
        return Check("open files", "warning", found, f"Ray opens many: ulimit -n 4096{reach}")
    return Check("open files", "ok", found)


def _check_loopback() -> Check:
    host = "127.0.0.1"
    try:
        with socket.create_server((host, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=2).close()
    except OSError as error:
        fix = "the workers of a run talk over it: bring it up (ip link set lo up) and let the firewall pass it"
        return Check("loopback network", "failure", f"{host} does not answer ({error})", fix)
    return Check("loopback network", "ok", f"{host} answers")


def _check_clock() -> Check:
    now, written = time.time(), Path(__file__).stat().st_mtime
    found = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if now < written - 86400:
        fix = "set the clock: make and the inputs' modification times rely on it"
        return Check("clock", "warning", f"{found}, earlier than this program was written", fix)
    return Check("clock", "ok", found)


def _check_packages() -> Iterator[Check]:
    try:
        about = metadata("kexue_train")
    except PackageNotFoundError:
        yield Check(
            "packages", "warning", "kexue_train is not installed, so versions are not checked", "pip install -e ."
        )
        return
    requirements = [Requirement(line) for line in about.get_all("Requires-Dist") or []]
    core = [r for r in requirements if _applies(r, "")]
    yield _check_group("packages", core, "pip install -c constraints.txt -e .", "failure")
    for extra, stages in _STAGES_OF_EXTRA.items():
        group = [r for r in requirements if r not in core and _applies(r, extra)]
        command = f"pip install -c constraints.txt -e '.[{extra}]', needed by {stages}"
        yield _check_group(f"packages: {extra}", group, command, "warning" if extra in _OPTIONAL_EXTRAS else "failure")


def _check_group(
    name: str, group: Iterable[Requirement], fix: str, status_if_missing: Literal["warning", "failure"]
) -> Check:
    good, missing, unfit = [], [], []
    for requirement in group:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if requirement.specifier.contains(found, prereleases=True):
            good.append(f"{requirement.name} {found}")
        else:
            why = f": {_WHY[requirement.name]}" if requirement.name in _WHY else ""
            unfit.append(f"{requirement.name} {found} (needs {requirement.specifier}{why})")
    if unfit:
        return Check(name, "failure", "unfit: " + ", ".join(unfit), fix)
    if missing:
        return Check(name, status_if_missing, "not installed: " + ", ".join(missing), fix)
    return Check(name, "ok", ", ".join(good))


def _check_torch() -> Iterator[Check]:
    if importlib.util.find_spec("torch") is None:
        return  # said by the packages of the extra "train"
    try:
        import torch  # noqa: PLC0415  # a second, and absent where only the data stages run
    except (ImportError, OSError) as error:
        fix = "install it again: pip install --force-reinstall -c constraints.txt torch"
        yield Check("torch", "failure", f"cannot be loaded ({str(error)[:200]})", fix)
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Check("torch", "ok", f"{torch.__version__}, built for {build}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        yield _check_gpus()
    elif Path("/proc/driver/nvidia").exists():
        fix = "install a torch built for CUDA, or a driver as new as its CUDA version (nvidia-smi shows both)"
        yield Check(
            "GPU", "warning", "there is an NVIDIA driver, but torch cannot use it: training runs on the CPU", fix
        )
    else:
        yield Check("GPU", "ok", "none: training runs on the CPU, which is enough for configs/demo.yaml")


def _check_gpus() -> Check:
    import torch  # noqa: PLC0415  # as above

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    found = ", ".join(f"{device.name} {format_size(device.total_memory)}" for device in devices)
    if not torch.cuda.is_bf16_supported():
        return Check("GPU", "warning", f"{found}, without bf16", "set train.precision=fp32")
    return Check("GPU", "ok", f"{found}, bf16")


def _check_compiler() -> Check:
    compiler = shutil.which(os.environ.get("CC") or "gcc") or shutil.which("clang")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    found = f"{compiler or 'no C compiler'}, {header if header.exists() else f'no {header}'}"
    if not _has_gpu():
        return Check(
            "compiler",
            "ok",
            f"{found}; a compiler makes the optimizer a third faster on CPUs, and train.compute.compile needs it",
        )
    if compiler and header.exists():
        return Check("compiler", "ok", f"{found}, which Triton needs for GPUs")
    fix = "install gcc and the headers of Python (Debian, Ubuntu: apt install gcc python3-dev); without them the "
    fix += "optimizer is slower on a GPU, and train.compute.compile=true fails"
    return Check("compiler", "warning", found, fix)


def _has_gpu() -> bool:
    try:
        import torch  # noqa: PLC0415  # as above
    except (ImportError, OSError):  # said by the check of torch
        return False
    return torch.cuda.is_available()


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
