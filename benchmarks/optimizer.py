"""Memory, time and quality of the optimizers; ``--help`` tells the options."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import optimizer_grid as grid_
from benchmarks import optimizer_grid_tables as tables_
from benchmarks import optimizer_memory as memory_
from benchmarks import optimizer_quality as quality_
from benchmarks import optimizer_step as step_
from benchmarks import optimizer_training as training_
from benchmarks.encoder import choose, facts, find_device, report
from benchmarks.encoder_models import SIZES
from benchmarks.run_store import Budget, Outcome, open_runs
from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.errors import KexueError

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

SizeName = Annotated[str, typer.Option("--size", help="tiny, small, base or large.")]
Vocab = Annotated[int, typer.Option(min=10, help="Words of the encoder.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="File for all raw figures.")]


@app.command()
def memory(
    size: SizeName = "base", vocab: Vocab = 12032,
    accumulation: Annotated[int, typer.Option(min=1, help="Micro-batches of a step.")] = 8,
    device: Device = "auto", json_path: JsonPath = None,
) -> None:  # fmt: skip
    """Bytes per parameter alive after the last backward of a step, at most in the step, and at most in that backward.

    Each optimizer runs in a process of its own. Weights are fp32 under bf16 autocast unless it says otherwise.
    """
    where, shape, results = find_device(device), choose(size, SIZES)[0], []
    for result in memory_.measure_all(shape, vocab, accumulation, where):
        results.append(result)
        print(f"{result.title}: {result.after_backward / result.parameters:.2f}", file=sys.stderr)
    about = _facts(where)
    title = f"Bytes per parameter, {results[0].parameters:,} parameters"
    report(title, memory_.memory_table(results), about | {"results": [asdict(r) for r in results]}, json_path)


@app.command()
def step(
    size: SizeName = "base", vocab: Vocab = 12032,
    windows: Annotated[str, typer.Option(help="Micro-batches of a window; several with commas.")] = "1,8",
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 7,
    device: Device = "auto", json_path: JsonPath = None,
) -> None:  # fmt: skip
    """Time of fold and move for each byte that must be touched, beside torch's fused AdamW and a copy."""
    where, shape = find_device(device), choose(size, SIZES)[0]
    found = step_.measure(shape, vocab, [int(k) for k in windows.split(",")], rounds, where)
    about = _facts(where)
    report(
        f"Optimizer steps of {found.parameters:,} parameters", step_.step_table(found), about | asdict(found), json_path
    )


@app.command()
def quality(
    samples: Annotated[Path, typer.Option(help="A folder of sample shards; no row is read twice by one training.")],
    steps: Annotated[int, typer.Option(min=10, help="Optimizer steps of a training.")] = 400,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each optimizer at its best learning rate.")] = 3,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    json_path: JsonPath = None,
) -> None:
    """Held-out loss of the same small encoder under each optimizer, learning rates tuned, several seeds.

    The learning rate is doubled or halved from a first guess until both neighbours of the best are worse, by the first
    seed. What the JSON file holds of the same task is not run again.
    """
    torch.set_num_threads(threads)
    about = _facts(torch.device("cpu"))
    runs = quality_.Runs(quality_.Task(str(samples), steps=steps), json_path, about)
    report("Held-out loss, nats", quality_.quality_table(quality_.compare(runs, seeds)), about, None)


@app.command()
def grid(
    samples: Annotated[Path, typer.Option(help="A folder of sample shards.")],
    json_path: Annotated[Path, typer.Option("--json", help="File of all runs; a later call goes on with it.")],
    minutes: Annotated[float, typer.Option(min=0, help="No run begins after so many; 0: only print tables.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
) -> None:
    """Held-out loss by optimizer, β, learning rate, rows of a step and length of the training.

    Safe to kill: the file holds every run that has ended, and the same command goes on. Tables are printed at the end.
    """
    torch.set_num_threads(threads)
    dataset, budget = SampleDataset(samples), Budget.of(minutes)
    about = _facts(torch.device("cpu"))
    with open_runs(json_path, about) as store:

        def train(cell: training_.Cell, rule: training_.Rule, lr: float, seed: int) -> Outcome:
            settings = training_.settings_of(dataset, cell, rule, lr, seed)

            def work() -> Outcome:
                outcome = training_.train(dataset, cell, rule, lr, seed)
                print(f"{cell.title}, {rule.title}, lr {lr:g}, seed {seed}: {outcome['curve'][-1]}", file=sys.stderr)
                return outcome

            return store.get(settings, work, budget)

        settled = grid_.walk(grid_.PLAN, train)
    for table in (*tables_.cell_tables(settled), tables_.gap_table(settled)):
        report(table.title, table, about, None)


def _facts(device: torch.device) -> dict[str, Any]:
    return facts(device) | {"command": shlex.join(["python", "benchmarks/optimizer.py", *sys.argv[1:]])}


if __name__ == "__main__":
    try:
        app()
    except KexueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
