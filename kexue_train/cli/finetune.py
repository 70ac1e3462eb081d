"""``kexue finetune``: train an exported model further on labelled data, and say what that is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexue_train.cli.commands import (
    AsJson,
    Out,
    OutFile,
    QuickGroup,
    TrustCode,
    command,
    making,
    print_json,
    print_result,
    show_progress,
)
from kexue_train.cli.options import Given, options_of
from kexue_train.downstream.folder_code import trusting_code

if TYPE_CHECKING:
    from kexue_train.downstream.settings import HarnessSettings, VectorSettings, WhiteningSettings

finetune_app = typer.Typer(
    cls=QuickGroup, help="Train an exported model further on labelled data.", no_args_is_help=True
)


@command(finetune_app, "task", example="kexue finetune task runs/demo/hf NLU --task trec --seeds 1 --out trec.json")
def finetune_task(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other of transformers.")],
    data: Annotated[Path, typer.Argument(help="Folder that the tasks' paths start from.")],
    out: OutFile,
    task: Annotated[
        list[str] | None, typer.Option(help="A known task, or a YAML file of your own tasks; may be repeated.")
    ] = None,
    given: "Given[HarnessSettings]" = options_of("kexue_train.downstream.settings:HarnessSettings"),
    save: Annotated[Path | None, typer.Option(help="Folder for the trained models of seed 0, one per task.")] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Train on labelled tasks, compared with a random encoder and baselines; exit 1 if something failed."""
    from kexue_train.downstream.finetune.harness import finetune_tasks  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.finetune.tasks.task import load_supervised_tasks  # noqa: PLC0415

    settings, tasks = given.config(), load_supervised_tasks(task or [])
    with trusting_code(trust_code), show_progress("finetune") as progress:
        results = finetune_tasks(model, data, tasks, settings, save=save, progress=progress)
    print_result(out, results, f"{len(tasks)} tasks, {settings.seeds} seeds", as_json)


@command(finetune_app, "whitening", example="kexue finetune whitening runs/demo/hf sentences.txt --out encoder")
def finetune_whitening(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other that AutoModel opens.")],
    inputs: Annotated[
        list[Path],
        typer.Argument(help="Text files, a sentence per line (.gz too); folders made before count as their sentences."),
    ],
    out: Out,
    given: "Given[WhiteningSettings]" = options_of("kexue_train.downstream.settings:WhiteningSettings"),
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Whiten sentence vectors by sentences without labels; sentence-transformers opens the result."""
    from kexue_train.downstream.evaluate.sentence_vectors.fit_whitening import fit_whitening  # noqa: PLC0415  # loads torch

    settings = given.config()
    with trusting_code(trust_code), making("finetune", out) as progress:
        manifest = fit_whitening(model, inputs, out, **dict(settings), progress=progress)
    facts = manifest.statistics
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        typer.echo(f"{out}: {facts['sentences']:,} sentences, {facts['dimensions']} dimensions")


@command(
    finetune_app,
    "sentence-vectors",
    example="kexue finetune sentence-vectors runs/demo/hf STS --set STS-B --out vectors.json",
)
def finetune_sentence_vectors(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other that AutoModel opens.")],
    data: Annotated[Path, typer.Argument(help="Folder with the sets, each a folder with train, dev and test files.")],
    sets: Annotated[list[str], typer.Option("--set", help="Name of a set; may be repeated.")],
    out: OutFile,
    given: "Given[VectorSettings]" = options_of("kexue_train.downstream.settings:VectorSettings"),
    save: Annotated[Path | None, typer.Option(help="Folder for the encoders of seed 0, one per set.")] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Train sentence vectors on labels, and score them before and after; exit 1 if something failed."""
    from kexue_train.downstream.finetune.sentence_vectors.train_vectors import train_vectors  # noqa: PLC0415  # loads torch

    settings = given.config()
    with trusting_code(trust_code), show_progress("finetune") as progress:
        results = train_vectors(model, data, sets, settings, save=save, progress=progress)
    print_result(out, results, f"{len(sets)} sets", as_json)
