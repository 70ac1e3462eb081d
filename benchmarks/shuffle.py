"""The shuffle beside other tools, on this machine: ``python benchmarks/shuffle.py --help``.

Every round runs each tool once, another one first each time; the time includes a final ``sync``. The page cache is cold
(programs and libraries are read from disk too, a second or so for those in Python), or with ``--cache warm`` holds the
input. On inputs of some MB that is all one sees, and samples of memory are few.
What is not installed is named and left out. The rows of every output are counted. All tools get the same single file.

Where the disk decides, tools of any speed look alike; give a folder on a RAM disk beside one on the disk to see both:
``--workdir runs/benchmark --workdir /dev/shm/benchmark --cache cold,warm --tools ours,ours-1,terashuf --size 1GB``.
"""

from __future__ import annotations

import datetime
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import summary
from benchmarks.bench import CACHES, Bench, Place, compare, places, soak, sweep_memory
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.make_corpus import KINDS
from benchmarks.tools import TOOLS
from kexue_train.foundation.errors import ConfigError, KexueError
from kexue_train.foundation.runtime import available_cpus, parse_size


def main(
    size: Annotated[str, typer.Option(help="Size of each corpus.")] = "3GB",
    memory: Annotated[str, typer.Option(help="What tools with a memory setting are told.")] = "512MB",
    rounds: Annotated[int | None, typer.Option(min=1, help="Runs of each (default 5; sweep and soak 1).")] = None,
    kinds: Annotated[str | None, typer.Option(help="lines,jsonl,short-lines (default; sweep and soak: lines).")] = None,
    tools: Annotated[str | None, typer.Option(help="Of " + ", ".join(tool.name for tool in TOOLS) + ".")] = None,
    workdirs: Annotated[
        list[Path],
        typer.Option("--workdir", help="Corpora stay here, all else is deleted; may be given several times."),
    ] = [Path("runs/benchmark")],  # noqa: B006  # typer's
    caches: Annotated[
        str, typer.Option("--cache", help="cold,warm: the page cache; a RAM disk is always warm.")
    ] = "cold",
    json_path: Annotated[Path | None, typer.Option("--json", help="File for all raw figures.")] = None,
    memory_sweep: Annotated[bool, typer.Option("--memory-sweep", help="Ours at 256MB, 512MB and 2GB.")] = False,
    soak_size: Annotated[str | None, typer.Option("--soak", help="Ours on 1/20, 1/10, 1/4, 1/2 and all of it.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as in RESULTS.md.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes (default: the CPUs).")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds that one run may take.")] = 3600.0,
    terashuf: Annotated[str, typer.Option(help="The program, if it is not on PATH.")] = "terashuf",
    keep: Annotated[bool, typer.Option("--keep", help="Keep each tool's last output, and soak's corpora.")] = False,
) -> None:
    """Measure the shuffle beside other tools; progress on standard error, tables on standard output."""
    is_comparison = not (memory_sweep or soak_size)
    chosen = choose(tools, {tool.name: tool for tool in TOOLS}, [tool.name for tool in TOOLS if tool.is_default])
    chosen_kinds = choose(kinds, {kind: kind for kind in KINDS}, list(KINDS) if is_comparison else ["lines"])
    rounds = rounds or (5 if is_comparison else 1)
    num_bytes, memory_bytes = parse_size(soak_size or size), parse_size(memory)
    for folder in (*workdirs, *([json_path.parent] if json_path else [])):
        folder.mkdir(parents=True, exist_ok=True)
    chosen_caches = choose(caches, {name: name for name in CACHES}, [])
    bench = Bench(
        place=Place(workdirs[0].resolve(), chosen_caches[0]),
        memory=memory_bytes,
        workers=workers or available_cpus(),
        seed=seed,
        timeout_seconds=timeout,
        terashuf=str(Path(shutil.which(terashuf) or terashuf).absolute()),
        keep=keep,
        json_path=json_path,
        facts=describe(workdirs),
        console=Console(stderr=True, highlight=False),
    )
    view = summary.soak() if soak_size else summary.memory_sweep() if memory_sweep else summary.comparison()
    try:
        if soak_size:
            soak(bench, TOOLS[0], chosen_kinds, num_bytes, rounds)
        elif memory_sweep:
            sweep_memory(bench, TOOLS[0], chosen_kinds, num_bytes, rounds)
        else:
            compare(bench, places(workdirs, chosen_caches), chosen, chosen_kinds, num_bytes, rounds)
    finally:  # what was measured is shown after an interruption too
        summary.report(bench.facts, bench.runs, view, markdown)


def describe(workdirs: list[Path]) -> dict[str, Any]:
    """What the figures depend on: date, command line, machine, versions; filled in later: corpora, tools left out."""
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/shuffle.py", *sys.argv[1:]]),
        "machine": describe_machine(*workdirs),
        "versions": describe_versions([name for name in ("dd", "shuf", "sort") if shutil.which(name)]),
        "corpora": [],
        "left_out": {},
    }


def choose(names: str | None, known: dict[str, Any], default: list[str]) -> list[Any]:
    """The values of ``known`` that ``names`` lists, separated by commas; those of ``default`` if it is None.

    Raises:
        ConfigError: If a name is not known.
    """
    chosen = [name.strip() for name in names.split(",")] if names is not None else default
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"{unknown[0]!r} is not known; choose from {', '.join(known)}")
    return [known[name] for name in chosen]


if __name__ == "__main__":
    try:
        typer.run(main)
    except KexueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
