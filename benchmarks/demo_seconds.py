"""Where the seconds of a cold ``make pretrain`` go: ``python -m benchmarks.demo_seconds [CONFIG] [KEY=VALUE ...]``.

Runs the flow in a fresh folder, and looks every fifth of a second at the processor time of all processes below it. Each
part of the run is a line: its wall seconds, and the processor seconds of each kind of process in it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import describe_machine
from kexue_train.metrics.fields import SECONDS, Kind
from kexue_train.metrics.file import read_metrics

_INTERVAL_SECONDS = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")
KINDS = ("flow", "Prefect's server", "Ray itself", "workers")
"""Of processes, in the order of the columns."""
_OF_RAY = ("/ray/core/src/ray/", "/ray/dashboard/", "/ray/_private/", "ray::Dashboard", "ray::Runtime")


@dataclass(frozen=True)
class Part:
    """A stretch of the run."""

    name: str
    begin: float
    """Seconds since 1970, as the end."""
    end: float
    note: str = ""


@dataclass
class Samples:
    """Processor seconds by kind of process, with the time at which they were seen to have been used."""

    used: list[tuple[float, str, float]] = field(default_factory=list)
    last: dict[int, float] = field(default_factory=dict)

    def look(self, root: int) -> None:
        """Add what the processes below ``root`` have used since the last look."""
        now = time.time()
        for pid, seconds in _processor_seconds_below(root).items():
            if seconds > (before := self.last.get(pid, 0.0)):
                self.used.append((now, kind_of(_command_line(pid), is_root=pid == root), seconds - before))
            self.last[pid] = seconds

    def between(self, begin: float, end: float) -> Counter[str]:
        """Processor seconds of each kind in a stretch of time."""
        sums: Counter[str] = Counter()
        for when, kind, seconds in self.used:
            if begin <= when < end:
                sums[kind] += seconds
        return sums


def kind_of(command_line: str, *, is_root: bool = False) -> str:
    """Return which of ``KINDS`` a process is, by its command line."""
    if is_root:
        return "flow"
    if "embedded_server" in command_line or "prefect.server" in command_line:
        return "Prefect's server"
    return "Ray itself" if any(part in command_line for part in _OF_RAY) else "workers"


def parts_of(run: Path, began: float, ended: float) -> list[Part]:
    """Return the parts of a run in order, without gaps, from what its folder has recorded."""
    stages = [json.loads(line) for line in (run / "stages.jsonl").read_text().splitlines()]
    parts, reached = [], began
    for stage in stages:
        name, begin, end = stage["stage"], stage["started"], stage["started"] + stage["seconds"]
        parts.append(Part(f"before {name}", reached, begin))
        parts += _parts_of_training(run, begin, end) if name == "train" else [Part(name, begin, end)]
        reached = end
    return [*parts, Part("the end", reached, ended)]


def _parts_of_training(run: Path, begin: float, end: float) -> list[Part]:
    records = read_metrics(run / "pretrain" / "metrics.jsonl")
    first = next(record["time"] for record in records if record["kind"] == Kind.START)
    last = next(record["time"] for record in records if record["kind"] == Kind.END)
    steps = max(SECONDS.amount(record) for record in records if record["kind"] == Kind.TRAIN)
    counts = Counter(record["kind"] for record in records)
    note = (
        f"steps {steps:.1f} s; {counts[Kind.VALIDATION]} validations, {counts[Kind.CHECKPOINT]} checkpoints and the "
        f"rest {last - first - steps:.1f} s"
    )
    return [
        Part("train: workers start", begin, first),
        Part("train", first, last, note),
        Part("train: the end", last, end),
    ]


def print_table(parts: Sequence[Part], samples: Samples) -> None:
    """Print a line for each part and one for all of them, as Markdown."""
    print(f"| part | wall s | processor s | {' | '.join(KINDS)} | |\n|---|---|---|{'---|' * len(KINDS)}---|")
    for part in (*parts, Part("in all", parts[0].begin, parts[-1].end)):
        used = samples.between(part.begin, part.end)
        cells = [f"{used[kind]:.1f}" if used[kind] else "" for kind in KINDS]
        print(f"| {part.name} | {part.end - part.begin:.1f} | {used.total():.1f} | {' | '.join(cells)} | {part.note} |")


def main() -> int:
    """Run the flow and print its seconds; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default="configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="kexue-demo-", ignore_cleanup_errors=True) as folder:
        run, samples, began, load = Path(folder, "run"), Samples(), time.time(), os.getloadavg()
        command = [sys.executable, "-m", "flows.pretrain_pipeline", options.config, "--run-dir", str(run)]
        process = subprocess.Popen([*command, *options.overrides])
        while process.poll() is None:
            samples.look(process.pid)
            time.sleep(_INTERVAL_SECONDS)
        if process.returncode:
            return process.returncode
        ended = time.time()
        machine = describe_machine(Path(folder))
        print(
            f"\n{machine['cpus']} cores ({machine['cpu']}), load before {load[0]:.1f}, after {os.getloadavg()[0]:.1f}\n"
        )
        print_table(parts_of(run, began, ended), samples)
    return 0


def _processor_seconds_below(root: int) -> dict[int, float]:
    found = dict(_all_processes())
    children: dict[int, list[int]] = defaultdict(list)
    for pid, (parent, _) in found.items():
        children[parent].append(pid)
    below, todo = {}, [root]
    while todo:
        pid = todo.pop()
        if pid in found:
            below[pid] = found[pid][1]
        todo += children[pid]
    return below


def _all_processes() -> Iterator[tuple[int, tuple[int, float]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _read(entry / "stat").rpartition(")")[2].split()):
            yield int(entry.name), (int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS)


def _command_line(pid: int) -> str:
    return _read(Path("/proc", str(pid), "cmdline")).replace("\0", " ")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # the process has ended
        return ""


if __name__ == "__main__":
    sys.exit(main())
