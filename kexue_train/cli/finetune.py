"""``kexue finetune``: train an exported model further on labelled data, and say what that is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

finetune_app = typer.Typer(help="Train an exported model further on labelled data.", no_args_is_help=True)


@finetune_app.command("task")
def finetune_task(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other of transformers.")],
    data: Annotated[Path, typer.Argument(help="Folder that the tasks' paths start from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")],
    task: Annotated[
        list[str] | None, typer.Option(help="A known task, or a YAML file of your own tasks; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each encoder.")] = 3,
    max_train: Annotated[int | None, typer.Option(min=1, help="Learn from so many records at most.")] = None,
    max_eval: Annotated[int | None, typer.Option(min=1, help="Score so many records of each file at most.")] = None,
    max_length: Annotated[int | None, typer.Option(min=16, help="Tokens of a sequence (default: the task's).")] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Times that every record is seen (default: the task's).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Records per step (default: the task's).")] = None,
    lr: Annotated[float, typer.Option(help="Largest step, as a share of each tensor's size.")] = 5e-4,
    gradient_keep: Annotated[
        float, typer.Option(help="Gradient dropout: share of the elements that count at a step.")
    ] = 1.0,
    flood_level: Annotated[float, typer.Option(help="Flooding: the loss below which training climbs instead.")] = 0.0,
    random_encoder: Annotated[bool, typer.Option(help="Also train an encoder with fresh weights.")] = True,
    one_segment: Annotated[
        bool, typer.Option("--one-segment", help="For published RoFormerV2 weights: both texts of a pair as segment 0.")
    ] = False,
    save: Annotated[Path | None, typer.Option(help="Folder for the trained models of seed 0, one per task.")] = None,
) -> None:
    """Train on labelled tasks beside a random encoder and baselines; exit 1 if something failed."""
    from kexue_train.cli.terminal import write_and_print  # noqa: PLC0415
    from kexue_train.downstream.finetune.harness import HarnessSettings, finetune_tasks  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.finetune.tasks.task import load_tasks  # noqa: PLC0415

    tasks = load_tasks(task or [])
    values = {
        "seeds": seeds,
        "max_train": max_train,
        "max_eval": max_eval,
        "max_length": max_length,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "gradient_keep": gradient_keep,
        "flood_level": flood_level,
        "random_encoder": random_encoder,
        "one_segment": one_segment,
    }
    settings = HarnessSettings.parse(values, where="kexue finetune task")
    with _progress() as progress:
        results = finetune_tasks(model, data, tasks, settings, save=save, progress=progress)
    raise typer.Exit(write_and_print(out, results, f"{len(tasks)} tasks, {seeds} seeds"))


@finetune_app.command("whitening")
def finetune_whitening(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other that AutoModel opens.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Text files, a sentence per line (.gz too); folders made before count as their sentences."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; left alone if it holds other work.")],
    pooling: Annotated[str, typer.Option(help="cls, mean or first-last.")] = "first-last",
    dimensions: Annotated[int | None, typer.Option(min=1, help="How many to keep (default: all that vary).")] = None,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a sentence.")] = 128,
) -> None:
    """Whiten sentence vectors by sentences without labels; sentence-transformers opens the result."""
    from kexue_train.downstream.evaluate.sentence_vectors.choices import choose_poolings  # noqa: PLC0415
    from kexue_train.downstream.evaluate.sentence_vectors.fit_whitening import fit_whitening  # noqa: PLC0415  # loads torch

    (chosen,) = choose_poolings([pooling])
    with _progress() as progress:
        manifest = fit_whitening(
            model, inputs, out, pooling=chosen, dimensions=dimensions, max_length=max_length, progress=progress
        )
    facts = manifest.statistics
    typer.echo(f"{out}: {facts['sentences']:,} sentences, {facts['dimensions']} dimensions")


@finetune_app.command("sentence-vectors")
def finetune_sentence_vectors(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other that AutoModel opens.")],
    data: Annotated[Path, typer.Argument(help="Folder with the sets, each a folder with train, dev and test files.")],
    sets: Annotated[list[str], typer.Option("--set", help="Name of a set; may be repeated.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")],
    loss: Annotated[
        str, typer.Option(help="For scored pairs cosent or sentence-bert, for labels am-softmax.")
    ] = "cosent",
    pooling: Annotated[str, typer.Option(help="cls, mean or first-last.")] = "mean",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings on each set.")] = 3,
    max_train: Annotated[int | None, typer.Option(min=2, help="Learn from so many records at most.")] = None,
    max_eval: Annotated[int | None, typer.Option(min=2, help="Score so many records of each file at most.")] = None,
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a sentence.")] = 128,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every record is seen.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Records per step.")] = 64,
    lr: Annotated[float, typer.Option(help="Largest step, as a share of each tensor's size.")] = 5e-4,
    gradient_keep: Annotated[
        float, typer.Option(help="Gradient dropout: share of the elements that count at a step.")
    ] = 1.0,
    flood_level: Annotated[float, typer.Option(help="Flooding: the loss below which training climbs instead.")] = 0.0,
    save: Annotated[Path | None, typer.Option(help="Folder for the encoders of seed 0, one per set.")] = None,
) -> None:
    """Train sentence vectors on labels, and score them before and after; exit 1 if something failed."""
    from kexue_train.cli.terminal import write_and_print  # noqa: PLC0415
    from kexue_train.downstream.finetune.sentence_vectors.train_vectors import train_vectors  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.finetune.sentence_vectors.vector_settings import VectorSettings  # noqa: PLC0415

    fit = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "gradient_keep": gradient_keep,
        "flood_level": flood_level,
    }
    values = {
        "loss": loss,
        "pooling": pooling,
        "seeds": seeds,
        "max_train": max_train,
        "max_eval": max_eval,
        "max_length": max_length,
        "fit": fit,
    }
    settings = VectorSettings.parse(values, where="kexue finetune sentence-vectors")
    with _progress() as progress:
        results = train_vectors(model, data, sets, settings, save=save, progress=progress)
    raise typer.Exit(write_and_print(out, results, f"{len(sets)} sets"))


def _progress() -> Any:
    from rich.console import Console  # noqa: PLC0415

    from kexue_train.cli.terminal import SingleStage  # noqa: PLC0415

    return SingleStage("finetune", Console(stderr=True))
