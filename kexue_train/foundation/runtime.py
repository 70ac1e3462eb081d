"""What this process may use and how it speaks: CPUs, memory, disk, sizes in words, logging."""

from __future__ import annotations

import difflib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from kexue_train.foundation.errors import ConfigError, ResourceError
from kexue_train.foundation.json_logs import JsonFormatter, wants_json
from kexue_train.foundation.operating_system import (
    cgroups,
    give_back_freed_blocks,
    keep_freed_blocks,
    read_system_file,
    usable_cpus,
)
from kexue_train.foundation.shown import PrintableFormatter

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*$")


def parse_size(text: str) -> int:
    """Return the bytes of a size in words: ``"2GB"`` is 2·10⁹, ``"2GiB"`` is 2·2³⁰, ``"512"`` is 512.

    Raises:
        ConfigError: If the number or the unit cannot be read, or the size is zero.
    """
    match = _SIZE.match(text)
    unit = match[2].upper() if match else None
    if match is None or unit not in _UNITS:
        near = difflib.get_close_matches(unit or "", [name for name in _UNITS if len(name) > 1], n=4, cutoff=0.5)
        hint = f", did you mean {' or '.join(f'{match[1]}{name}' for name in sorted(near))}?" if match and near else ""
        raise ConfigError(f"size {text!r} cannot be read{hint}; write a number and a unit such as 512MB, 2GB or 2GiB")
    size = int(float(match[1]) * _UNITS[unit])
    if size <= 0:
        raise ConfigError(f"size {text!r} is zero; write a positive size such as 512MB")
    return size


def check_size(text: str | None) -> str | None:
    """Return ``text`` if ``parse_size`` can read it; a validator for the fields of configuration classes."""
    try:
        parse_size(text or "1B")
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def format_size(num_bytes: float) -> str:
    """Return a size in decimal units with three significant digits, such as ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 999.5:  # 999.5 and more would print as 1e+03
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB" if abs(num_bytes) < 999.5 else f"{num_bytes:,.0f} TB"


def format_seconds(seconds: float) -> str:
    """Return a duration such as ``4.2 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def available_cpus() -> int:
    """Count the CPUs this process may use, by scheduler affinity and cgroup quota; at least 1."""
    cpus = usable_cpus()
    for folder in cgroups():
        quota = read_system_file(folder / "cpu.max").split()
        if quota and quota[0] != "max":
            cpus = min(cpus, int(quota[0]) // int(quota[1]))
    return max(1, cpus)


def available_memory_bytes() -> int:
    """Return the memory this process may still take: the machine's free memory or what its cgroups leave, if less."""
    import psutil  # noqa: PLC0415  # a tenth of the time of "kexue shuffle --help", which does not ask

    free = int(psutil.virtual_memory().available)
    for folder in cgroups():
        limit, used = read_system_file(folder / "memory.max"), read_system_file(folder / "memory.current")
        if limit.isdigit() and used.isdigit():
            # A cgroup's use counts cached file pages, which the kernel gives back before it refuses memory.
            cached = re.findall(r"^(?:in)?active_file (\d+)$", read_system_file(folder / "memory.stat"), re.MULTILINE)
            free = min(free, max(0, int(limit) - int(used) + sum(map(int, cached))))
    return free


def total_memory_bytes() -> int:
    """Return the memory this process could have alone: the machine's or what its cgroups allow, if less."""
    import psutil  # noqa: PLC0415  # as above

    limits = [read_system_file(folder / "memory.max") for folder in cgroups()]
    return min(int(psutil.virtual_memory().total), *(int(limit) for limit in limits if limit.isdigit()), 2**62)


def keep_freed_memory() -> None:
    """Let this process use freed memory again instead of giving it back to the system at once.

    By default every block of some MB is fresh memory, which the system fills with zeros page by page: a third of the
    time of a shuffle, and a quarter of that of training on a CPU. Arrow has an allocator of its own; the same for it is
    an environment variable (``cli.main``).
    """
    keep_freed_blocks()


@lru_cache(maxsize=1)  # so a call that repeats the last one does nothing
def keep_freed_memory_of(work: Callable[..., object]) -> None:  # noqa: ARG001  # the key of the cache
    """Let this process use again what earlier calls of ``work`` freed; what other work freed goes back to the system.

    ``work`` calls it at its beginning.
    """
    keep_freed_memory()
    give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Give what this process keeps back to the system, before work of another kind."""
    if arrow := sys.modules.get("pyarrow"):  # without it there is nothing to give back
        arrow.default_memory_pool().release_unused()
    give_back_freed_blocks()


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes of the file system of ``folder``, which need not exist."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free


def require_disk(folder: Path, num_bytes: int, purpose: str) -> None:
    """Refuse to start what cannot end for lack of disk.

    Raises:
        ResourceError: If the file system of ``folder`` has less than ``num_bytes`` free.
    """
    free = free_disk_bytes(folder)
    if free < num_bytes:
        raise ResourceError(
            f"{folder}: {purpose} needs about {format_size(num_bytes)} of disk and {format_size(free)} are free; "
            f"free {format_size(num_bytes - free)} there, or write to another file system, "
            "then run the same command again"
        )


def configure_logging(level: int = logging.WARNING, file: Path | None = None) -> None:
    """Set up logging once, in an entry point or worker: to ``file`` if given, else to standard error.

    The lines are text or JSON, see ``json_logs``.
    """
    enable_package_loggers()
    handler: logging.Handler = (
        logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler(sys.stderr)
    )
    text = PrintableFormatter(f"%(asctime)s %(levelname)s rank {rank()} %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if wants_json() else text)
    logging.basicConfig(level=level, handlers=[handler], force=True)


def enable_package_loggers() -> None:
    """Switch this package's loggers on again after a logging configuration of the program has switched them off.

    ``logging.config`` disables every logger that exists and is not named in the configuration, unless it says
    ``disable_existing_loggers: False``. Whoever calls it after importing this package would never learn that a stage
    waits for machines, say. Levels, handlers and ``propagate`` stay as they are: these silence a logger on purpose.
    """
    package = __name__.partition(".")[0]
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and name.partition(".")[0] == package:
            logger.disabled = False


def rank() -> int:
    """Return this process's rank among the training workers; 0 outside training."""
    return int(os.environ.get("RANK", "0"))
