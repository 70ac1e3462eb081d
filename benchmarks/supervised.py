"""Whether the supervised stage helps a small encoder on tasks that it has not seen; ``--help`` tells the options.

Three encoders that begin alike: after pretraining; after as many further steps of masked words alone; after as many
steps of the mix. Each is fine-tuned on tasks outside of the mix with several seeds, on few records, and scored on their
development sets. What the corpus has of the mixed tasks' texts is counted.
"""

from __future__ import annotations

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from rich.console import Console
from rich.table import Table

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from kexue_train.downstream.finetune.harness import finetune_tasks
from kexue_train.downstream.finetune.tasks.task import load_supervised_tasks
from kexue_train.downstream.settings import HarnessSettings
from kexue_train.export.export_hf import export_hf
from kexue_train.foundation.progress import Silent
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.run import open_run, run_stage
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import SAMPLES, SHUFFLE, TOKENIZER, TRAIN
from kexue_train.supervised.stage import supervise
from kexue_train.train.stage import last_checkpoint

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
MIX = {"mlm": 6, "waimai": 1, "thucnews_title": 1, "ocnli": 1, "cluener": 1}
UNSEEN = ("chnsenti_hotel", "afqmc", "weibo_ner")
PRETRAINED, MORE_WORDS, MIXED = "pretrained", "more masked words", "supervised stage"


class Notes(Silent):
    """Prints what is noted."""

    def note(self, message: str) -> None:
        """Print it."""
        typer.echo(message, err=True)


@dataclass(frozen=True)
class Sizes:
    """How much is trained."""

    steps: int
    further_steps: int
    layers: int
    width: int


def config_of(corpus: list[Path], data: Path, sizes: Sizes, mix: dict[str, int]) -> RunConfig:
    """Return the configuration of a run whose second stage has this mix."""
    values: dict[str, Any] = {
        "name": "stage",
        "corpus": {"source": "files", "inputs": [str(path.absolute()) for path in corpus]},
        "shuffle": {"shards": 2, "on_bad_record": "skip", "dedup": "exact"},
        "tokenizer": {"vocab_size": 6000},
        "samples": {"seq_len": 128, "heldout_fraction": 0.01},
        "model": {
            "num_hidden_layers": sizes.layers,
            "hidden_size": sizes.width,
            "num_attention_heads": max(1, sizes.width // 64),
            "intermediate_size": 4 * sizes.width,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "max_position_embeddings": 128,
        },
        "optimizer": {"lr": 5e-3, "schedule": {max(1, sizes.steps // 20): 1.0, sizes.steps: 0.1}},
        "train": {
            "steps": sizes.steps,
            "global_batch_size": 16,
            "micro_batch_size": 4,
            "device": "auto",
            "compute": {"engine": "torch", "recompute": "none"},
            "workers": {"launcher": "local", "threads_per_worker": torch.get_num_threads()},
            "checkpoints": {"every": 500},
            "logging": {"log_every": 50, "validate_every": 500},
        },
        "supervised": {
            "data": str(data.absolute()),
            "mix": mix,
            "steps": sizes.further_steps,
            "lr": 2e-3,
            "global_batch_size": 32,
            "micro_batch_size": 4,
            "max_contamination": 1.0,
        },
    }
    return RunConfig.parse(values, where="benchmark")


def make_encoders(corpus: list[Path], data: Path, work: Path, sizes: Sizes) -> dict[str, Path]:
    """Train and export the three encoders below ``work``; what is there is used again."""
    config, progress = config_of(corpus, data, sizes, MIX), Notes()
    with RunDir(work / "run").lock():
        run = open_run(config, work / "run")
        for stage in (SHUFFLE, TOKENIZER, SAMPLES, TRAIN):
            typer.echo(f"{stage.name}: {run_stage(stage, run, progress).summary}", err=True)
        start, samples = last_checkpoint(run.folder.pretrain), run.folder.samples
        weights = {PRETRAINED: start}
        for name, mix in ((MORE_WORDS, {"mlm": 1}), (MIXED, MIX)):
            out = work / name.replace(" ", "-")
            changed = config_of(corpus, data, sizes, mix)
            supervise(changed, start, samples, out, shards=run.folder.shards, replace=True, progress=progress)
            weights[name] = last_checkpoint(out)
    folders = {name: work / f"hf-{name.replace(' ', '-')}" for name in weights}
    for name, folder in folders.items():
        export_hf(weights[name], folder, replace=True)
    return folders


@app.command()
def main(
    corpus: Annotated[list[Path], typer.Argument(help="Chinese documents, as for 'kexue shuffle'.")],
    data: Annotated[Path, typer.Option(help="Folder with the labelled sets.")],
    work: Annotated[Path, typer.Option(help="Folder for everything that is made.")],
    steps: Annotated[int, typer.Option(help="Steps of pretraining, 16 rows of 128 tokens each.")] = 1000,
    further_steps: Annotated[int, typer.Option(help="Steps of the second stage, 32 rows or examples each.")] = 300,
    layers: Annotated[int, typer.Option()] = 2,
    width: Annotated[int, typer.Option()] = 128,
    seeds: Annotated[int, typer.Option(help="Fine-tunings of each encoder on each task.")] = 3,
    max_train: Annotated[int, typer.Option(help="Records to fine-tune on.")] = 600,
    max_eval: Annotated[int, typer.Option(help="Records to score.")] = 800,
    epochs: Annotated[int, typer.Option()] = 3,
    task: Annotated[list[str] | None, typer.Option(help="Tasks to fine-tune on, outside of the mix.")] = None,
) -> None:
    """Train the encoders, fine-tune them, and print the scores."""
    encoders = make_encoders(corpus, data, work, Sizes(steps, further_steps, layers, width))
    tasks = load_supervised_tasks(task or list(UNSEEN))
    settings = HarnessSettings(
        seeds=seeds, max_train=max_train, max_eval=max_eval, epochs=epochs, max_length=64, random_encoder=False
    )
    found = {
        name: finetune_tasks(folder, data, tasks, settings, progress=Notes()).tasks for name, folder in encoders.items()
    }
    table = Table("task", "metric", *encoders, title="development sets, mean ± standard deviation over seeds")
    record: dict[str, Any] = {}
    for number, name in enumerate(tasks):
        row, metric = [], ""
        for encoder, results in found.items():
            result = results[number]
            if not result.encoders:
                row.append("failed")
                continue
            metric = str(result.metric)
            scores = [seed.scores["dev"][metric] for seed in result.encoders[0].runs]
            record.setdefault(name, {})[encoder] = scores
            row.append(f"{statistics.mean(scores):.1%} ± {statistics.pstdev(scores):.1%}")
        table.add_row(name, metric, *row)
    Console(width=140).print(table)
    (work / "scores.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (work / "mix.yaml").write_text(yaml.safe_dump(MIX), encoding="utf-8")


if __name__ == "__main__":
    app()
