"""``kexue finetune``: train an exported model further on labelled data, and say what that is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexue_train.cli.commands import (
    AsJson,
    Out,
    OutFile,
    QuickGroup,
    Seed,
    TrustCode,
    command,
    making,
    print_json,
    print_result,
    show_progress,
)
from kexue_train.cli.options import Given, options_of
from kexue_train.downstream.folder_code import trusting_code
from kexue_train.foundation.errors import ConfigError

if TYPE_CHECKING:
    from kexue_train.downstream.settings import (
        FewShotSettings,
        HarnessSettings,
        ParaphraseSettings,
        VectorSettings,
        WhiteningSettings,
    )

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


@command(
    finetune_app, "nsp", example="kexue finetune nsp runs/demo/hf FewCLUE/datasets --task eprstmt --out few_shot.json"
)
def finetune_nsp(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other with an NSP head.")],
    data: Annotated[Path, typer.Argument(help="Folder with the tasks' data, such as FewCLUE's 'datasets'.")],
    out: OutFile,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A FewCLUE task, or a YAML file of your own tasks; may be repeated. [all nine]"),
    ] = None,
    given: "Given[FewShotSettings]" = options_of("kexue_train.downstream.settings:FewShotSettings"),
    save: Annotated[Path | None, typer.Option(help="Folder for the tuned models of seed 0, one per task.")] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Tune next sentences on the few records of a task, beside published results; exit 1 if something failed."""
    from kexue_train.downstream.evaluate.zero_shot.task import load_zero_shot_tasks  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.finetune.next_sentences.tune_tasks import tune_next_sentences  # noqa: PLC0415

    settings, tasks = given.config(), load_zero_shot_tasks(task or [])
    with trusting_code(trust_code), show_progress("finetune") as progress:
        results = tune_next_sentences(model, data, tasks, settings, save=save, progress=progress)
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
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with the sets, each a folder with train, dev and test files. With --loss simcse: sentences, a "
            "file or a folder of text files, JSON Lines or tables."
        ),
    ],
    out: OutFile,
    sets: Annotated[list[str] | None, typer.Option("--set", help="Name of a set; may be repeated.")] = None,
    sts: Annotated[
        Path | None, typer.Option(help="With --loss simcse: folder with the sets of pairs that score the vectors.")
    ] = None,
    given: "Given[VectorSettings]" = options_of("kexue_train.downstream.settings:VectorSettings"),
    save: Annotated[
        Path | None,
        typer.Option(help="Folder for the encoders of seed 0, one per set; with --loss simcse for the one."),
    ] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Train sentence vectors on labels or sentences alone, scored before and after; exit 1 if something failed."""
    from kexue_train.downstream.finetune.sentence_vectors.train_on_sentences import train_on_sentences  # noqa: PLC0415
    from kexue_train.downstream.finetune.sentence_vectors.train_vectors import train_vectors  # noqa: PLC0415  # loads torch

    settings, names = given.config(), sets or []
    if settings.loss == "simcse" and names and sts is None:
        raise ConfigError("--set names sets of pairs that score the vectors; say with --sts where they are")
    if settings.loss != "simcse" and sts is not None:
        raise ConfigError(f"--sts is of --loss simcse; the loss {settings.loss} scores the sets that it learns from")
    if settings.loss != "simcse" and not names:
        raise ConfigError(
            f"no set is chosen; the loss {settings.loss} learns from labels: name a folder of {data} by --set"
        )
    with trusting_code(trust_code), show_progress("finetune") as progress:
        if settings.loss == "simcse":
            results = train_on_sentences(model, data, settings, sts=sts, names=names, save=save, progress=progress)
        else:
            results = train_vectors(model, data, names, settings, save=save, progress=progress)
    print_result(out, results, f"{len(results.sets)} sets", as_json)


@command(
    finetune_app, "paraphrase", example="kexue finetune paraphrase runs/demo/hf --data pairs.jsonl --out paraphraser"
)
def finetune_paraphrase(
    model: Annotated[Path, typer.Argument(help="Exported RoFormerV2 folder.")],
    data: Annotated[Path, typer.Option(help="JSON Lines (.gz too): text_a and text_b, which mean the same.")],
    out: Out,
    dev: Annotated[
        Path | None, typer.Option(help="The same, of pairs to score and to choose the epoch by. [a tenth of --data]")
    ] = None,
    given: "Given[ParaphraseSettings]" = options_of("kexue_train.downstream.settings:ParaphraseSettings"),
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a model to write paraphrases and to compare sentences; 'kexue paraphrase' uses it."""
    from kexue_train.downstream.finetune.paraphrase.train_writer import train_writer  # noqa: PLC0415  # loads torch

    settings = given.config()
    with show_progress("finetune") as progress:
        results = train_writer(model, data, out, settings, dev=dev, seed=seed, progress=progress)
    print_result(out / "paraphrase.json", results, f"{out} writes paraphrases and has sentence vectors", as_json)
