"""The sample stage beside bare tokenization, the loader beside the collators: ``python benchmarks/samples.py --help``.

Every round runs each tool once, another one first each time. Ours is the whole command, start of Python included; bare
tokenization counts nothing but the calls of the tokenizers library, the best that any stage could reach.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe_machine
from benchmarks.make_corpus import make_corpus
from kexue_train.foundation.runtime import available_cpus, parse_size

_KEXUE = [sys.executable, "-m", "kexue_train"]
_PEERS = [sys.executable, str(Path(__file__).with_name("sample_peers.py"))]
_STAGES = {"ours": "kexue samples", "bare": "tokenizers alone", "datasets": "datasets.map, then cut"}
_LOADERS = {
    "loader": "kexue loader, words",
    "collator": "transformers collator, pieces",
    "collator-words": "transformers collator, words",
}
_LOADER_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """One corpus made ready."""

    name: str
    shards: Path
    tokenizer: Path
    samples: Path
    workers: int


def main(
    corpus: Annotated[list[str] | None, typer.Option(help="NAME=FILES, may be given again (default: made up).")] = None,
    size: Annotated[str, typer.Option(help="Of the corpus made up.")] = "100MB",
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    vocab_size: Annotated[int, typer.Option(help="Of the tokenizer that is trained.")] = 16384,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes, or threads (default: the CPUs).")] = None,
    workdir: Annotated[Path, typer.Option(help="Shards, tokenizers and samples stay here.")] = Path("runs/benchmark"),
) -> None:
    """Measure both; tables on standard output, progress on standard error."""
    progress, console = Console(stderr=True), Console()
    workdir.mkdir(parents=True, exist_ok=True)
    facts = describe_machine(workdir)
    console.print(f"{facts['cpus']} × {facts['cpu']}, {facts['memory_bytes'] / 1e9:.0f} GB, {rounds} rounds")
    for name, files in _corpora(corpus, size, workdir):
        job = _prepare(name, files, workdir.resolve() / name, vocab_size, workers or available_cpus())
        num_bytes = _text_bytes(job)
        stages: dict[str, list[float]] = {tool: [] for tool in _STAGES}
        loaders: dict[str, list[float]] = {tool: [] for tool in _LOADERS}
        for number in range(rounds):
            for tool in _turned(list(_STAGES), number):
                stages[tool].append(_stage_seconds(job, tool))
                progress.print(f"{name}, round {number + 1}: {_STAGES[tool]}: {stages[tool][-1]:.1f} s")
            for tool in _turned(list(_LOADERS), number):
                loaders[tool].append(_tokens_per_second(job, tool))
                progress.print(f"{name}, round {number + 1}: {_LOADERS[tool]}: {loaders[tool][-1]:,.0f} tokens/s")
        console.print(_stage_table(job, num_bytes, stages), _loader_table(job, loaders))


def _corpora(given: list[str] | None, size: str, workdir: Path) -> list[tuple[str, str]]:
    if given:
        return [(name, files) for name, _, files in (entry.partition("=") for entry in given)]
    return [("made-up", str(make_corpus(workdir / "corpora", "lines", parse_size(size)).path))]


def _prepare(name: str, files: str, folder: Path, vocab_size: int, workers: int) -> Job:
    """Shards, tokenizer and samples of a corpus; what is there already is used again."""
    job = Job(name, folder / "shards", folder / "tokenizer", folder / "samples", workers)
    _run([*_KEXUE, "shuffle", files, "--out", str(job.shards), "--shard-size", "16MB"])
    _run([*_KEXUE, "tokenizer", str(job.shards), "--out", str(job.tokenizer), "--vocab-size", str(vocab_size)])
    shutil.rmtree(job.samples, ignore_errors=True)
    _stage_seconds(job, "ours", keep=True)
    return job


def _stage_seconds(job: Job, tool: str, *, keep: bool = False) -> float:
    arguments = [str(job.shards), str(job.tokenizer), str(job.workers)]
    if tool != "ours":
        return float(json.loads(_run([*_PEERS, tool, *arguments]))["seconds"])
    out = job.samples if keep else job.samples.with_name("again")
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    options = ["--tokenizer", str(job.tokenizer), "--out", str(out), "--workers", str(job.workers)]
    _run([*_KEXUE, "samples", str(job.shards), *options])
    seconds = time.perf_counter() - start
    if not keep:
        shutil.rmtree(out)
    return seconds


def _tokens_per_second(job: Job, tool: str) -> float:
    """Of one process on one core."""
    cpu = {min(os.sched_getaffinity(0))}
    command = [*_PEERS, tool, str(job.samples), str(_LOADER_SECONDS)]
    found = json.loads(_run(command, cpu=cpu))
    return float(found["tokens"] / found["seconds"])


def _run(command: list[str], cpu: set[int] | None = None) -> str:
    pin = (lambda: os.sched_setaffinity(0, cpu)) if cpu else None
    env = os.environ | {"TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=pin, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout.strip().rpartition("\n")[2]


def _text_bytes(job: Job) -> int:
    manifest = json.loads((job.shards / "manifest.json").read_text(encoding="utf-8"))
    return int(manifest["bytes"])


def _turned(tools: list[str], number: int) -> list[str]:
    return tools[number % len(tools) :] + tools[: number % len(tools)]


def _stage_table(job: Job, num_bytes: int, stages: dict[str, list[float]]) -> Table:
    table = Table(title=f"{job.name}: {num_bytes / 1e6:.0f} MB of text, {job.workers} workers")
    for heading in ("stage", "s", "MB/s", "× tokenizers alone"):
        table.add_column(heading)
    for tool, title in _STAGES.items():
        ratio = statistics.median(ours / bare for ours, bare in zip(stages[tool], stages["bare"], strict=True))
        seconds = statistics.median(stages[tool])
        cells = [f"{seconds:.1f} {_span(stages[tool], '.1f')}", f"{num_bytes / 1e6 / seconds:.1f}", f"{ratio:.2f}"]
        table.add_row(title, *cells)
    return table


def _loader_table(job: Job, loaders: dict[str, list[float]]) -> Table:
    table = Table(title=f"{job.name}: batches of 32 rows of 512, one core")
    for heading in ("loader", "M tokens/s"):
        table.add_column(heading)
    for tool, title in _LOADERS.items():
        millions = [value / 1e6 for value in loaders[tool]]
        table.add_row(title, f"{statistics.median(millions):.2f} {_span(millions, '.2f')}")
    return table


def _span(values: list[float], form: str) -> str:
    return f"[{min(values):{form}}–{max(values):{form}}]"


if __name__ == "__main__":
    typer.run(main)
