"""Training steps on one CPU core beside those of an earlier commit, in one run; ``--help`` tells the options.

Each version runs in a process of its own and does a step when it is its turn, another one first in each round. Only the
seconds that a process has worked count, so others on the machine disturb little. Ratios are of the two steps of one
round; both see the same micro-batches of made-up rows.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.encoder import facts, report
from kexue_train.foundation.errors import KexueError, ResourceError
from kexue_train.model.config import ModelConfig
from kexue_train.train.precision import bf16_share

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
_ROOT = Path(__file__).resolve().parent.parent
_SHAPES = {
    "demo": {"layers": 3, "width": 192, "rows": 4, "accumulation": 2},
    "256": {"layers": 3, "width": 256, "rows": 16, "accumulation": 1},
    "base": {"layers": 4, "width": 768, "rows": 8, "accumulation": 1},
}
_VOCAB, _SEQ_LEN, _WARM_UP = 8192, 128, 2

JsonPath = Annotated[Path | None, typer.Option("--json", help="File for all raw figures.")]


@app.command()
def beside(
    commit: Annotated[str, typer.Argument(help="The earlier commit.")],
    shape: Annotated[str, typer.Option(help=f"{', '.join(_SHAPES)}; rows of {_SEQ_LEN}.")] = "demo",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto.")] = "fp32",
    earlier_precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    recompute: Annotated[str, typer.Option(help="none, selective or full; of both.")] = "none",
    rounds: Annotated[int, typer.Option(min=1, help="Measured steps of each.")] = 15,
    json_path: JsonPath = None,
) -> None:
    """Steps of this version beside those of COMMIT: forward, backward and Tiger, with one thread."""
    given = _SHAPES[shape] | {"vocab": _VOCAB, "seq_len": _SEQ_LEN, "recompute": recompute}
    with ExitStack() as stack:
        earlier = stack.enter_context(_checkout(commit))
        sides = {
            "earlier": stack.enter_context(_side(earlier, given | {"precision": earlier_precision})),
            "now": stack.enter_context(_side(_ROOT, given | {"precision": precision})),
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds + _WARM_UP):
            for name in sorted(sides, reverse=bool(number % 2)):
                seconds = _step(sides[name])
                if number >= _WARM_UP:
                    times[name].append(seconds)
        ends = {name: json.loads(process.communicate()[0]) for name, process in sides.items()}
    ratios = [old / new for old, new in zip(times["earlier"], times["now"], strict=True)]
    table = Table("version", "precision", "ms a step", "fastest", "times as fast", "of")
    for name, process in (("earlier", commit), ("now", "this one")):
        table.add_row(
            process, ends[name]["precision"], f"{statistics.median(times[name]) * 1e3:.1f}",
            f"{min(times[name]) * 1e3:.1f}", f"{statistics.median(ratios):.2f}" if name == "now" else "", str(rounds),
        )  # fmt: skip
    same, about = ends["earlier"]["weights"] == ends["now"]["weights"], _facts()
    table.caption = f"weights after all steps: {'the same bits' if same else 'other bits'}; load {about['load']}"
    report(f"Steps, {shape}", table, about | {"seconds": times, "ends": ends, "given": given}, json_path)


@app.command()
def share(
    widths: Annotated[str, typer.Option(help="Several with commas.")] = "128,192,256,768",
    times: Annotated[int, typer.Option(min=1, help="Trials of each.")] = 3,
    json_path: JsonPath = None,
) -> None:
    """What ``precision: auto`` measures: the time of a layer in bf16 as a share of that in fp32, with one thread."""
    torch.set_num_threads(1)
    table, found = Table("width", "rows", "bf16 / fp32"), {}
    for width in map(int, widths.split(",")):
        model = ModelConfig(hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width)
        found[width] = [bf16_share(model, 4, _SEQ_LEN, torch.device("cpu")) for _ in range(times)]
        table.add_row(str(width), f"4 x {_SEQ_LEN}", ", ".join(f"{value:.2f}" for value in found[width]))
    report("A layer in bf16", table, _facts() | {"shares": found}, json_path)


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A work tree of the commit, which goes afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="earlier-"))
    git = ["git", "-C", str(_ROOT), "worktree"]
    try:
        done = subprocess.run([*git, "add", "--detach", folder, commit], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ResourceError(f"{commit}: cannot be checked out ({done.stderr.strip()}); name a commit of {_ROOT}")
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", folder], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _side(root: Path, given: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("cpu_step_side.py")), json.dumps(given)]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, cwd=root, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _step(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise ResourceError("a version has ended before its time; see what it printed above")
    return float(json.loads(answer)["seconds"])


def _facts() -> dict[str, Any]:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    command = shlex.join(["python", "benchmarks/cpu_step.py", *sys.argv[1:]])
    return facts(torch.device("cpu")) | {"command": command, "load": load}


if __name__ == "__main__":
    try:
        app()
    except KexueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
