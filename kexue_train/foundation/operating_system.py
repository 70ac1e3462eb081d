"""What operating systems do differently: the only file that asks which one this is.

Everything is made for Linux. Elsewhere (macOS) a function does the same by other means where there are some. One that
only spares time or disk does nothing there, and where there is no way, the docstring says what it returns.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2


def is_linux() -> bool:
    """Return whether this is Linux."""
    return sys.platform == "linux"


def usable_cpus() -> int:
    """Return the CPUs that this process may run on, by scheduler affinity; elsewhere those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroups(root: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Return this process's cgroup (version 2) and those above it; elsewhere folders that do not exist.

    A container sees its own as root.
    """
    lines = read_system_file(Path("/proc/self/cgroup")).splitlines()
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    path = root / own.lstrip("/")
    return [path, *(folder for folder in path.parents if folder.is_relative_to(root))]


def read_system_file(path: Path) -> str:
    """Return what the kernel says in a file; empty if it has no such file."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def boot_id() -> str:
    """Return a name for the time since this machine started, new at every start; empty where the system tells none."""
    return read_system_file(Path("/proc/sys/kernel/random/boot_id"))


def lock_file(descriptor: int) -> None:
    """Take the lock of an open file, for this process and as long as the file is open.

    Raises:
        BlockingIOError: If another process has it.
        OSError: If the file system has no locks.
    """
    import fcntl  # noqa: PLC0415  # absent where this package is refused at once

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def open_files_limit() -> tuple[int, int]:
    """Return how many files this process may have open, and how far it may raise that; ``sys.maxsize``: no limit."""
    import resource  # noqa: PLC0415  # as above

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return tuple(sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in (soft, hard))  # type: ignore[return-value]


def read_at(descriptor: int, places: Sequence[memoryview], offset: int) -> int:
    """Read into ``places`` from ``offset`` on, without the file's position; return how many bytes, 0 at its end.

    Elsewhere only the first of ``places`` is read into: a read may be short anyway.
    """
    if hasattr(os, "preadv"):
        return os.preadv(descriptor, places, offset)
    data = os.pread(descriptor, len(places[0]), offset)
    places[0][: len(data)] = data
    return len(data)


def write_out(descriptor: int, start: int, end: int) -> None:
    """Start to write ``[start, end)`` of a file to disk, where the system can; a hint, so failing is no failure."""
    if call := _c_function("sync_file_range"):
        call(descriptor, ctypes.c_int64(start), ctypes.c_int64(end - start), _SYNC_FILE_RANGE_WRITE)


def free_range(descriptor: int, start: int, size: int) -> None:
    """Give the disk blocks of ``[start, start + size)`` back, where the system can; the file then reads as zeros."""
    if call := _c_function("fallocate"):
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        call(descriptor, mode, ctypes.c_int64(start), ctypes.c_int64(size))


def keep_freed_blocks() -> None:
    """Let the allocator of C use freed memory again instead of giving it back to the system at once; glibc only."""
    if call := _c_function("mallopt"):
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            call(option, 2**30)


def give_back_freed_blocks() -> None:
    """Let the allocator of C give freed memory back to the system; glibc only."""
    if call := _c_function("malloc_trim"):
        call(0)


def forget_peak_memory() -> None:
    """Let ``peak_memory_bytes`` begin anew.

    Raises:
        OSError: If this system does not let a process measure its memory.
    """
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held since ``forget_peak_memory``."""
    found = re.search(r"VmHWM:\s*(\d+) kB", read_system_file(Path("/proc/self/status")))
    return int(found[1]) * 1024 if found else 0


def end_with_parent() -> None:
    """Let this process end when the process that started it dies, even by kill -9.

    On Linux the kernel sees to it; elsewhere a thread looks every second.
    """
    if is_linux():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _c_function(name: str) -> Any:
    """Return a function of the C library that Python's ``os`` does not have; None where this system lacks it too."""
    return getattr(ctypes.CDLL(None), name, None)
