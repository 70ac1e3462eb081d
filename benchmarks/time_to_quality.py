"""How soon our encoder is as good as transformers' of the same size, and which part of it that comes from.

BERT, RoFormer and ModernBERT with fused AdamW read the same sequences with the same hidden tokens in the same steps,
one sequence per row, padded; all on the same cores in the same precision, with the best of three learning rates each.
Scores are those of the same held-out tokens by the same code. Processor seconds are those of forward, backward and
optimizer. Losses do not depend on what else runs on the machine; speeds are measured in turns.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import quality_tables as tables
from benchmarks.encoder import choose, facts, report
from benchmarks.quality_contenders import EVERYBODY, Contender
from benchmarks.quality_learners import Task
from benchmarks.quality_trainer import train_with_trainer
from benchmarks.quality_training import measure_speed, settings_of, train
from benchmarks.quality_walk import LOOP, walk
from benchmarks.run_store import Budget, Outcome, open_runs
from benchmarks.sample_batches import heldout_batches
from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.errors import KexueError

app = typer.Typer(add_completion=False)


@app.command(help=__doc__)
def main(
    samples: Annotated[Path, typer.Argument(help="A folder of sample shards.")],
    json_path: Annotated[Path, typer.Option("--json", help="File of all runs; a later call goes on with it.")],
    layers: Annotated[int, typer.Option(min=1)] = Task.layers,
    hidden: Annotated[int, typer.Option(min=64, help="Width; heads are 64 wide.")] = Task.hidden,
    rows: Annotated[int, typer.Option(min=1, help="Rows of a step.")] = Task.rows,
    steps: Annotated[int, typer.Option(min=1)] = Task.steps,
    search_steps: Annotated[int, typer.Option(min=0, help="Of a search for rates; 0: as many as steps.")] = 0,
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = Task.precision,
    rounds: Annotated[int, typer.Option(min=1, help="Of the measurement of speeds.")] = 7,
    minutes: Annotated[float, typer.Option(min=0, help="No run begins after so many; 0: only print tables.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
) -> None:
    """Train everybody as far as time allows, and print tables of what the file holds. Safe to kill."""
    torch.set_num_threads(threads)
    choose(precision, {"fp32": None, "bf16": None})
    dataset, budget = SampleDataset(samples), Budget.of(minutes)
    task = Task(layers=layers, hidden=hidden, rows=rows, steps=steps, precision=precision)
    about = facts(torch.device("cpu")) | {
        "command": shlex.join(["python", "benchmarks/time_to_quality.py", *sys.argv[1:]])
    }
    with open_runs(json_path, about) as store:

        def get(loop: str, task: Task, contender: Contender, lr: float, seed: int) -> Outcome:
            def work() -> Outcome:
                outcome = (train if loop == LOOP else train_with_trainer)(dataset, task, contender, lr, seed)
                print(f"{contender.name}, {loop}, lr {lr:g}, seed {seed}: {outcome['curve'][-1]}", file=sys.stderr)
                return outcome

            return store.get(settings_of(loop, dataset, task, contender, lr, seed), work, budget)

        def measure() -> dict[str, list[float]]:
            everybody = list(EVERYBODY.values())
            settings = settings_of("speed", dataset, task, everybody[0], 0.0, 0) | {
                "contender": list(EVERYBODY), "rounds": rounds, "threads": threads,
            }  # fmt: skip
            return store.get(settings, lambda: measure_speed(dataset, task, everybody, rounds), budget)

        found = walk(task, search_steps or steps, seeds, get, measure)
    plateau = tables.unigram_loss(dataset, heldout_batches(dataset, task.heldout_rows))
    for table in (
        tables.contender_table(found, plateau), tables.curve_table(found), tables.race_table(found),
        tables.ablation_table(found, plateau), tables.trainer_table(found),
    ):  # fmt: skip
        if table.row_count:
            report(str(table.title), table, about, None)


if __name__ == "__main__":
    try:
        app()
    except KexueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
