"""Runs one command and measures it with everything it starts: time, CPU, memory, what it writes and the disk it fills.

Linux only. Memory is sampled from ``/proc/PID/smaps_rollup``. CPU and bytes written come from the kernel's own counts,
which pass from every process to the one that waited for it. The measuring process has orphans fall back to it, so that
daemons (Ray's) are seen and ended too.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import select
import shlex
import signal
import subprocess
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

_INTERVAL_SECONDS = 0.05
_DISK_INTERVAL_SECONDS = 0.5
_SAMPLING_SHARE = 0.05  # samples are spaced out where they would take more than this of one core
_PR_SET_CHILD_SUBREAPER = 36
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and what its streams are."""

    argv: list[str]
    stdin: Path | None = None
    stdout: Path | None = None
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        env = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        streams = [f"{sign} {shlex.quote(str(path))}" for sign, path in (("<", self.stdin), (">", self.stdout)) if path]
        return " ".join([*env, shlex.join(self.argv), *streams])


@dataclass(slots=True)
class Measured:
    """Figures of one run, in seconds and bytes. Memory: the largest sample, all processes of the command together."""

    seconds: float = 0.0
    """Until the command ended, and a ``sync`` after it."""
    sync_seconds: float = 0.0
    """The part of it that the ``sync`` took."""
    cpu_seconds: float = 0.0
    """User and system."""
    peak_pss: int = 0
    peak_rss: int = 0
    peak_pss_without_files: int = 0
    """The same without pages of mapped files, which the kernel can take back at any time."""
    max_rss_of_one: int = 0
    """The kernel's own record of the largest single process, unsampled; no less than the measuring process has."""
    written: int = 0
    """Written to disk by the processes of the command, less what was deleted before it got there. Of processes that
    nobody waits for (some of Ray's) as last sampled, so a little may be missing; at least what is there at the end.
    """
    device_written: int | None = None
    """What reached the block device meanwhile, whoever wrote it; None: no such device is known."""
    peak_disk: int = 0
    """Most that the files in the working folder took up."""
    num_samples: int = 0
    sampling_seconds: float = 0.0
    load_before: float = 0.0
    """The machine's load average (1 minute) before the run: what other people do."""
    error: str = ""
    """Why it failed; empty if it did not."""


def measure(command: Command, folder: Path, *, timeout_seconds: float = 3600.0) -> Measured:
    """Run ``command`` in ``folder`` to its end and a ``sync``; a failure or a run too long is told in ``error``."""
    _adopt_orphans(True)
    found, sampler, log = Measured(load_before=round(os.getloadavg()[0], 2)), _Sampler(folder), folder / "log.txt"
    before, device_before = _counts(), device_written(folder)
    with ExitStack() as stack:
        stdin = stack.enter_context(command.stdin.open("rb")) if command.stdin else subprocess.DEVNULL
        stderr = stack.enter_context(log.open("wb"))
        stdout = stack.enter_context(command.stdout.open("wb")) if command.stdout else stderr
        start, env = time.perf_counter(), os.environ | command.env
        process = subprocess.Popen(command.argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=folder)
    is_late = True
    try:
        is_late = not sampler.watch(process.pid, deadline=start + timeout_seconds)
    finally:
        if is_late:
            process.send_signal(signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)  # not process.wait, which would lose the resource usage
        process.returncode = os.waitstatus_to_exitcode(status)
        ended = time.perf_counter()
        os.sync()
        found.seconds, found.sync_seconds = time.perf_counter() - start, time.perf_counter() - ended
        sampler.end_orphans(patience_seconds=0.0 if is_late else 10.0)
        _adopt_orphans(False)
    cpu, written = (now - then for now, then in zip(_counts(), before, strict=True))
    unwaited_cpu, unwaited_written = sampler.unwaited()
    left = disk_used(folder)
    found.cpu_seconds, found.written = cpu + unwaited_cpu, max(int(written + unwaited_written), left)
    if device_before is not None:
        found.device_written = (device_written(folder) or 0) - device_before
    found.max_rss_of_one = usage.ru_maxrss * 1024
    for name in ("peak_pss", "peak_rss", "peak_pss_without_files", "peak_disk", "num_samples", "sampling_seconds"):
        setattr(found, name, getattr(sampler, name))
    found.peak_disk = max(found.peak_disk, left)
    if is_late or process.returncode:
        reason = f"took more than {timeout_seconds:.0f} s" if is_late else f"exit code {process.returncode}"
        found.error = f"{reason}: {_last_words(log)}"
    return found


def device_written(folder: Path) -> int | None:
    """Bytes written so far to the block device of ``folder``, by anybody; None if it is on no such device."""
    device = folder.stat().st_dev
    try:
        fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    except OSError:
        return None
    return int(fields[6]) * 512


class _Sampler:
    """Follows the processes that this process started, directly or not, since the sampler was made."""

    def __init__(self, folder: Path) -> None:
        self.peak_pss = self.peak_rss = self.peak_pss_without_files = self.peak_disk = self.num_samples = 0
        self.sampling_seconds = 0.0
        self._folder, self._next_disk = folder, 0.0
        self._unwaited: dict[int, tuple[float, int]] = {}
        # What runs already and what descends from it never becomes ours: no second look needed.
        self._strangers = set(_pids()) - {os.getpid()}

    def watch(self, pid: int, deadline: float) -> bool:
        """Sample until ``pid`` ends (True) or the deadline passes (False)."""
        ending = os.pidfd_open(pid)
        try:
            while True:
                start = time.perf_counter()
                self._sample(start)
                cost = time.perf_counter() - start
                self.sampling_seconds += cost
                if select.select([ending], [], [], max(_INTERVAL_SECONDS - cost, cost / _SAMPLING_SHARE))[0]:
                    return True
                if start > deadline:
                    return False
        finally:
            os.close(ending)

    def end_orphans(self, patience_seconds: float) -> None:
        """End and wait for what the command left running: first let it go by itself, then kill it."""
        patience = time.perf_counter() + patience_seconds
        while tree := self._tree():
            for pid, process in tree.items():
                if time.perf_counter() > patience:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if process.parent == os.getpid():
                    self._unwaited.pop(pid, None)  # its figures come to us now
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.02)

    def unwaited(self) -> tuple[float, int]:
        """CPU seconds and bytes written of processes whose parent ignores its children's end, as last seen."""
        return sum(cpu for cpu, _ in self._unwaited.values()), sum(written for _, written in self._unwaited.values())

    def _sample(self, now: float) -> None:
        tree = self._tree()
        memory = [_memory(pid) for pid in tree]
        rss, pss, without_files = (sum(column) for column in zip(*memory, strict=True)) if memory else (0, 0, 0)
        self.peak_rss, self.peak_pss = max(self.peak_rss, rss), max(self.peak_pss, pss)
        self.peak_pss_without_files = max(self.peak_pss_without_files, without_files)
        deaf = {process.parent for process in tree.values() if _ignores_children(process.parent)}
        for pid, process in tree.items():
            if process.parent in deaf:
                self._unwaited[pid] = (process.cpu_seconds, _written(pid))
        if now >= self._next_disk:
            self.peak_disk, self._next_disk = max(self.peak_disk, disk_used(self._folder)), now + _DISK_INTERVAL_SECONDS
        self.num_samples += 1

    def _tree(self) -> dict[int, _Process]:
        pids = set(_pids()) - self._strangers - {os.getpid()}
        processes = {pid: found for pid in pids if (found := _process(pid))}
        children: dict[int, list[int]] = {}
        for pid, process in processes.items():
            children.setdefault(process.parent, []).append(pid)
        tree, todo = {}, children.get(os.getpid(), [])
        while todo:
            pid = todo.pop()
            tree[pid] = processes[pid]
            todo += children.get(pid, [])
        self._strangers |= {pid for pid, process in processes.items() if process.parent in self._strangers}
        return tree


def _adopt_orphans(wanted: bool) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def disk_used(folder: Path) -> int:
    """Bytes of disk that the files under ``folder`` take up."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # deleted meanwhile
                total += os.stat(os.path.join(root, name)).st_blocks * 512  # noqa: PTH116, PTH118  # cheap
    return total


@dataclass(frozen=True, slots=True)
class _Process:
    parent: int
    cpu_seconds: float


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208  # cheap


def _process(pid: int) -> _Process | None:
    stat = _read(f"/proc/{pid}/stat")
    fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return _Process(int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS) if fields else None


def _memory(pid: int) -> tuple[int, int, int]:
    """RSS, PSS, and PSS without pages of files."""
    sizes = dict(re.findall(r"^(\w+): +(\d+) kB$", _read(f"/proc/{pid}/smaps_rollup"), re.MULTILINE))
    values = {name: int(sizes.get(name, 0)) * 1024 for name in ("Rss", "Pss", "Pss_File")}
    return values["Rss"], values["Pss"], values["Pss"] - values["Pss_File"]


def _ignores_children(pid: int) -> bool:
    mask = re.search(r"^SigIgn:\s+(\w+)$", _read(f"/proc/{pid}/status"), re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> (signal.SIGCHLD - 1) & 1)


def _written(process: int | str) -> int:
    counts = dict(re.findall(r"^(\w+): (\d+)$", _read(f"/proc/{process}/io"), re.MULTILINE))
    return int(counts.get("write_bytes", 0)) - int(counts.get("cancelled_write_bytes", 0))


def _counts() -> tuple[float, int]:
    """CPU seconds and bytes written of all processes that were waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime, _written("self")


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  # cheap
            return file.read()
    except OSError:  # the process has ended
        return ""


def _last_words(log: Path, num_bytes: int = 300) -> str:
    text = log.read_bytes()[-4000:].decode("utf-8", errors="replace")
    return " ".join(text.split())[-num_bytes:]
