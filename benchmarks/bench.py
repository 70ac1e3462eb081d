"""Runs the tools: corpora, folders, rounds, and what is kept of every run."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.machine import drop_page_cache, file_system, fill_page_cache
from benchmarks.make_corpus import Corpus, make_corpus
from benchmarks.measure import measure
from benchmarks.summary import Run
from benchmarks.tools import Job, Tool, count_rows
from kexue_train.foundation.runtime import format_size, parse_size, require_disk

SWEEP_LIMITS = ("256MB", "512MB", "2GB")
SOAK_SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
_DISK_TIMES_INPUT = {"all": 5, "ours": 3}  # the corpus, and what the most wasteful tool needs beside it


CACHES = ("cold", "warm")
"""What the page cache holds of the input before a run: nothing, or all."""
_IN_MEMORY = ("tmpfs", "ramfs")


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs take place."""

    workdir: Path
    cache: str

    @property
    def title(self) -> str:
        """The file system, and the page cache where it matters."""
        kind, _ = file_system(self.workdir)
        return "RAM disk" if kind in _IN_MEMORY else f"{kind}, {self.cache}"


def places(workdirs: list[Path], caches: list[str]) -> list[Place]:
    """Every folder with every state of the page cache; what lies on a RAM disk is always in memory."""
    found = [Place(folder.resolve(), cache) for folder in workdirs for cache in caches]
    return list({(place.workdir, place.title): place for place in found}.values())


@dataclass
class Bench:
    """The settings of all runs, and the runs so far."""

    place: Place
    memory: int
    workers: int
    seed: int
    timeout_seconds: float
    terashuf: str
    keep: bool
    json_path: Path | None
    facts: dict[str, Any]
    console: Console
    runs: list[Run] = field(default_factory=list)

    @property
    def workdir(self) -> Path:
        """Where corpora and runs lie."""
        return self.place.workdir

    def corpus(self, kind: str, num_bytes: int, tools: str = "ours") -> Corpus:
        """The corpus, made if it is not there; notes what it is."""
        require_disk(self.workdir, _DISK_TIMES_INPUT[tools] * num_bytes, "the benchmark")
        self.console.print(f"corpus {kind}, {format_size(num_bytes)} …", end=" ")
        corpus = make_corpus(self.workdir / "corpora", kind, num_bytes, seed=self.seed)
        facts = {"kind": kind, "rows": corpus.rows, "bytes": corpus.bytes, "lz4_ratio": corpus.lz4_ratio}
        facts["mean_line_bytes"] = round(corpus.mean_line_bytes, 1)
        self.facts["corpora"] += [facts] if facts not in self.facts["corpora"] else []
        self.console.print(
            f"{corpus.rows:,} lines of {corpus.mean_line_bytes:.0f} bytes on average, lz4 {corpus.lz4_ratio:.2f}×"
        )
        return corpus

    @contextmanager
    def job(self, corpus: Corpus, memory: int, name: str) -> Iterator[Job]:
        """A job with an empty folder, deleted afterwards unless all are kept."""
        folder = self.workdir / "run" / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tmp").mkdir(parents=True)
        try:
            yield Job(corpus, folder, memory, self.workers, self.seed, self.terashuf)
        finally:
            if not self.keep:
                shutil.rmtree(folder)

    def usable(self, tools: list[Tool], corpus: Corpus) -> list[Tool]:
        """Those of ``tools`` that suit the corpus and are installed; says which are not."""
        found = []
        for tool in tools:
            if corpus.kind not in tool.kinds:
                continue
            with self.job(corpus, self.memory, "probe") as job:
                reason = tool.missing(job)
            if reason and tool.name not in self.facts["left_out"]:
                self.console.print(f"left out: {tool.title}: {reason}", markup=False, soft_wrap=True)
                self.facts["left_out"][tool.name] = reason
            found += [] if reason else [tool]
        return found

    def run(self, tool: Tool, corpus: Corpus, round_: int, memory: int | None = None) -> Run:
        """Run a tool once and add the run to what is known."""
        memory = memory or self.memory
        with self.job(corpus, memory, tool.name) as job:
            command = tool.make_command(job)
            is_warm = self.place.cache == "warm" or self.place.title == "RAM disk"
            state = fill_page_cache(corpus.path) if is_warm else drop_page_cache([corpus.path])
            self.facts.setdefault("page_cache", {})[self.place.title] = state
            measured = measure(command, job.folder, timeout_seconds=self.timeout_seconds)
            measured.error = measured.error or check_output(job.folder / tool.out, corpus)
        facts = (self.place.title, round_, memory, corpus.bytes, corpus.rows, str(command))
        run = Run(corpus.kind, tool.name, tool.title, *facts, measured)
        self.runs.append(run)
        result = measured.error or f"{run.megabytes_per_second:.1f} MB/s, PSS {format_size(measured.peak_pss)}"
        name = f"{corpus.kind}, {run.place}, round {round_ + 1}: {tool.name}"
        self.console.print(f"  {name}: {result}", markup=False, soft_wrap=True)
        self.save()
        return run

    def save(self) -> None:
        """Write all there is to the JSON file, after every run, so that an interruption loses nothing."""
        if self.json_path:
            values = self.facts | {"runs": [asdict(run) for run in self.runs]}
            self.json_path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_output(out: Path, corpus: Corpus) -> str:
    """What is wrong with an output; empty if it has as many rows as the input, and if text, as many bytes."""
    try:
        rows, num_bytes = count_rows(out)
    except (OSError, ValueError) as error:
        return f"unreadable output: {error}"
    if rows != corpus.rows or num_bytes not in (None, corpus.bytes):
        return (
            f"wrote {rows:,} rows, {num_bytes or '?'} bytes; the input has {corpus.rows:,} rows, {corpus.bytes} bytes"
        )
    return ""


def rotate(tools: list[Tool], round_: int) -> list[Tool]:
    """The order of a round: each round another tool is the first."""
    start = round_ % max(len(tools), 1)
    return tools[start:] + tools[:start]


def compare(bench: Bench, where: list[Place], tools: list[Tool], kinds: list[str], num_bytes: int, rounds: int) -> None:
    """All tools on all corpora in all places; what failed once is not tried again there."""
    if bench.memory >= num_bytes:
        bench.console.print("warning: the memory holds the whole input; some tools (terashuf) then need one pass only")
    for kind, place in itertools.product(kinds, where):
        bench = replace(bench, place=place)
        corpus = bench.corpus(kind, num_bytes, "all")
        working = bench.usable(tools, corpus)
        for round_ in range(rounds):
            done = [(tool, bench.run(tool, corpus, round_)) for tool in rotate(working, round_)]
            failed = {tool.name for tool, run in done if run.measured.error}
            working = [tool for tool in working if tool.name not in failed]


def sweep_memory(bench: Bench, tool: Tool, kinds: list[str], num_bytes: int, rounds: int) -> None:
    """One tool under several memory limits."""
    for kind in kinds:
        corpus = bench.corpus(kind, num_bytes)
        for round_ in range(rounds):
            for limit in SWEEP_LIMITS:
                bench.run(tool, corpus, round_, parse_size(limit))


def soak(bench: Bench, tool: Tool, kinds: list[str], num_bytes: int, rounds: int) -> None:
    """One tool on ever larger inputs; those made for it are deleted one by one unless all are kept."""
    known = set((bench.workdir / "corpora").glob("*"))
    for kind in kinds:
        for share in SOAK_SHARES:
            corpus = bench.corpus(kind, int(num_bytes * share))
            for round_ in range(rounds):
                bench.run(tool, corpus, round_)
            if not bench.keep and corpus.path not in known:
                corpus.path.unlink()
