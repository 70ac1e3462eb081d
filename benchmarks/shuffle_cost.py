"""What a shuffle of any size does, counted: tasks, files, bytes, Ray objects; and how long, by costs measured here.

``python benchmarks/shuffle_cost.py`` shuffles one corpus as a few large tasks and as very many tiny ones, takes the
cost of a byte, a task and a spill segment from the three times, checks the counts against the files that appeared, and
prints the model for 500 GB and 10 TB on 1, 10 and 100 machines. ``--no-run`` prints it with the costs below.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.make_corpus import make_corpus
from kexue_train.corpus.inputs import Source
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.runtime import format_seconds, format_size, parse_size
from kexue_train.shuffle import plan as planning
from kexue_train.shuffle import shuffle_corpus as stage
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.plan import plan_shuffle, split_memory

SPILL_RATE = 0.65
"""Bytes of spill for a byte of text."""
TB, GB, MB = 10**12, 10**9, 10**6


@dataclass(frozen=True)
class Costs:
    """Seconds of one CPU."""

    byte: float = 12e-9
    task: float = 10e-3
    segment: float = 300e-6


@dataclass(frozen=True)
class Counts:
    """What a shuffle does, whatever the time it takes."""

    tasks: int
    """Scatter and gather tasks: as many results come back through Ray."""
    segments: int
    """Runs of one bucket in one spill file; each is written once and read once."""
    files: int
    """Spill files, shards, and a marker for each task."""
    disk_bytes: float
    """Read and written: input, spill twice, output."""
    objects: int
    """Ray objects: results, and with spill on the machines' own disks what each sends to each gather task."""
    network_bytes: float
    """Spill that is gathered on another machine than it was scattered on."""


def count(corpus_bytes: int, machines: int, memory_bytes: int, workers: int, shard_bytes: int) -> Counts:
    """The counts for one splittable file of text."""
    source = Source("/corpus.jsonl", "jsonl", None, corpus_bytes, 0, units=corpus_bytes)
    budget = split_memory(memory_bytes, workers)
    plan = plan_shuffle([source], max(1, round(corpus_bytes / shard_bytes)), budget.bucket_bytes)
    scatters = len(plan.tasks)
    flushes = -(-corpus_bytes // scatters // budget.buffer_bytes)
    tasks = scatters + plan.num_shards
    spill = SPILL_RATE * corpus_bytes
    return Counts(
        tasks=tasks,
        segments=scatters * flushes * plan.num_buckets,
        files=scatters + plan.num_shards + tasks,
        disk_bytes=2 * corpus_bytes + 2 * spill,
        objects=tasks + (plan.num_shards * machines if machines > 1 else 0),
        network_bytes=spill * (machines - 1) / machines,
    )


def seconds(counts: Counts, corpus_bytes: int, machines: int, workers: int, disk_rate: float, costs: Costs) -> float:
    """The longer of what the processors and the disks need."""
    processors = costs.byte * corpus_bytes + costs.task * counts.tasks + costs.segment * counts.segments
    return max(processors / (machines * workers), counts.disk_bytes / (machines * disk_rate))


def main(
    size: Annotated[str, typer.Option(help="Corpus of the measurement.")] = "300MB",
    workdir: Annotated[Path, typer.Option(help="Where it is made.")] = Path("runs/benchmark"),
    run: Annotated[bool, typer.Option("--run/--no-run", help="Measure the costs on this machine.")] = True,
    memory: Annotated[str, typer.Option(help="Of a machine in the model.")] = "64GB",
    workers: Annotated[int, typer.Option(help="CPUs of a machine in the model.")] = 32,
    disk_rate: Annotated[str, typer.Option(help="Bytes a second that its disks read and write together.")] = "2GB",
) -> None:
    """Measure the costs, check the counts, print the model."""
    console = Console(width=130)
    costs = measure(parse_size(size), workdir, console) if run else Costs()
    table = Table(title=f"{workers} CPUs, {memory}, disks of {disk_rate}/s each")
    for name in ("corpus", "machines", "tasks", "segments", "of bytes", "files", "objects", "disk", "network", "time"):
        table.add_column(name, justify="right")
    for corpus_bytes in (500 * GB, 10 * TB):
        shard_bytes = max(256 * MB, corpus_bytes // 4000)
        for machines in (1, 10, 100):
            counts = count(corpus_bytes, machines, parse_size(memory), workers, shard_bytes)
            took = seconds(counts, corpus_bytes, machines, workers, parse_size(disk_rate), costs)
            table.add_row(
                format_size(corpus_bytes),
                str(machines),
                f"{counts.tasks:,}",
                f"{counts.segments:,}",
                format_size(SPILL_RATE * corpus_bytes / counts.segments),
                f"{counts.files:,}",
                f"{counts.objects:,}",
                format_size(counts.disk_bytes),
                format_size(counts.network_bytes),
                format_seconds(took),
            )
    console.print(table)


def measure(size: int, workdir: Path, console: Console) -> Costs:
    """The costs from three ways to cut one shuffle, each the faster of two runs, in one process."""
    workdir.mkdir(parents=True, exist_ok=True)
    corpus = make_corpus(workdir, "jsonl", size)
    cuts = [(size // 8, 4), (size // 1000, 4), (size // 1000, 40)]  # bytes of a range, shards
    rows = []
    for range_bytes, shards in cuts:
        took, tasks, segments = min(_shuffle(corpus.path, workdir / "cost", range_bytes, shards) for _ in range(2))
        rows.append([corpus.bytes, tasks, segments, took])
        console.print(f"{tasks:,} tasks, {segments:,} segments: {took:.1f} s")
    table = np.array(rows)
    byte, task, segment = np.linalg.solve(table[:, :3], table[:, 3])
    console.print(f"a byte {byte * 1e9:.1f} ns, a task {task * 1e3:.1f} ms, a segment {segment * 1e6:.0f} µs\n")
    return Costs(byte, task, segment)


def _shuffle(path: Path, out: Path, range_bytes: int, shards: int) -> tuple[float, int, int]:
    """(seconds, tasks, segments) of one shuffle; fails if other files appeared than the model counts."""
    shutil.rmtree(out, ignore_errors=True)
    with ranges_of(range_bytes), counting() as seen:
        began = time.perf_counter()
        stage.shuffle_corpus(
            ShuffleConfig(shards=shards, memory="1GB"), [str(path)], out, seed=0, executor=LocalExecutor(1)
        )
        took = time.perf_counter() - began
    shutil.rmtree(out)
    scatters, flushes, buckets, markers = seen["spills"], seen["flushes"], seen["buckets"], seen["markers"]
    if (markers, buckets) != (scatters + shards, shards):
        raise RuntimeError(f"the model counts {scatters + shards} markers of {shards} buckets, there were {seen}")
    return took, scatters + shards, flushes * buckets


@contextmanager
def ranges_of(num_bytes: int) -> Iterator[None]:
    """Cut corpora into tasks of so many bytes."""
    before = planning._MIN_RANGE_BYTES, planning._MAX_RANGE_BYTES
    planning._MIN_RANGE_BYTES = planning._MAX_RANGE_BYTES = num_bytes
    try:
        yield
    finally:
        planning._MIN_RANGE_BYTES, planning._MAX_RANGE_BYTES = before


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Count the files in the scratch folder at the moment when all tasks are done."""
    seen: dict[str, int] = {}
    finish = stage._finish

    def count_files(passes: stage.Passes, *arguments: object) -> object:
        results = [json.loads(file.read_text()) for file in passes.scratch.glob("task-*.json")]
        seen["spills"] = len(list(passes.scratch.glob("task-*.spill")))
        seen["markers"] = len(results) + len(list(passes.scratch.glob("shard-*.json")))
        seen["flushes"] = sum(result["index"]["num_flushes"] for result in results)
        seen["buckets"] = passes.plan.num_buckets
        return finish(passes, *arguments)

    stage._finish = count_files
    try:
        yield seen
    finally:
        stage._finish = finish


if __name__ == "__main__":
    typer.run(main)
