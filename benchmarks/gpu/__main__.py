"""The acceptance on a GPU; ``--help`` tells the options.

Every check has a time box of its own and runs in a process apart: one that hangs or dies is ended and counts as failed,
and the next ones begin in a fresh process. ``gpu.json`` is written anew after every check. Exit code 1: a check failed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.gpu.check import REAL, STAND_IN, Bench
from benchmarks.gpu.checks import CHECKS
from benchmarks.gpu.made_up import make_samples
from benchmarks.gpu.run_checks import console, run_all


def main(
    out: Annotated[Path, typer.Option(help="Receives gpu.json and trace.json.gz.")] = Path("build/gpu"),
    minutes: Annotated[float, typer.Option(min=0.1, help="For all checks together.")] = 8.0,
    only: Annotated[str, typer.Option(help="Names of checks, with commas; default: all.")] = "",
    stand_in: Annotated[bool, typer.Option("--stand-in", help="Tiny sizes on the CPU.")] = False,
) -> None:
    """Run every CUDA path on this machine's GPU, compare it with what is known, and time it."""
    on_gpu = torch.cuda.is_available() and not stand_in
    if not on_gpu and not stand_in:
        console.print("torch sees no GPU here: tiny sizes on the CPU stand in, which shows nothing about a GPU")
    names = [name.strip() for name in only.split(",") if name.strip()]
    if unknown := set(names) - {check.name for check in CHECKS}:
        console.print(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(c.name for c in CHECKS)}")
        raise typer.Exit(2)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    sizes = REAL if on_gpu else STAND_IN
    deadline = time.monotonic() + 60 * minutes
    samples = out / "work" / "data" / "samples"
    if not samples.exists():
        make_samples(samples.parent, sizes)
    bench = Bench(device=torch.device("cuda" if on_gpu else "cpu"), sizes=sizes, out=out, samples=samples)
    outcomes = run_all([check for check in CHECKS if not names or check.name in names], bench, deadline)
    raise typer.Exit(int(any(outcome.status == "failed" for outcome in outcomes)))


if __name__ == "__main__":
    typer.run(main)
