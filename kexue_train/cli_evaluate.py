"""``kexue evaluate``: what a model can do, as a JSON file and a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kexue_train.errors import ConfigError

evaluate_app = typer.Typer(help="Score a model.", no_args_is_help=True)


@evaluate_app.command("mlm")
def evaluate_mlm(
    model: Annotated[Path, typer.Argument(help="Exported model folder.")],
    data: Annotated[Path, typer.Argument(help="Folder of sample shards; the held-out rows are scored.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Rows scored at once.")] = 32,
    sentences: Annotated[
        Path | None, typer.Option(help="Text file, a sentence per line: also give the pseudo-perplexity of each.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Fixes the masks.")] = 0,
) -> None:
    """Masked-word and next-sentence scores beside honest baselines."""
    from kexue_train.artifacts import write_atomic  # noqa: PLC0415
    from kexue_train.evaluate.json_text import json_text  # noqa: PLC0415
    from kexue_train.evaluate.load_model import load_masked_lm  # noqa: PLC0415  # loads torch
    from kexue_train.evaluate.masked_lm import evaluate_masked_lm  # noqa: PLC0415  # loads torch
    from kexue_train.evaluate.masked_words import pseudo_perplexities, read_sentences  # noqa: PLC0415  # loads torch

    texts = read_sentences(sentences) if sentences else []
    with _progress() as progress:
        scores = evaluate_masked_lm(model, data, seed=seed, batch_size=batch_size, progress=progress)
        if texts:
            scores["sentences"] = pseudo_perplexities(load_masked_lm(model), texts, progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json_text(scores))
    typer.echo(f"{out}: MLM loss {scores['mlm_loss']:.3f} nats, accuracy {scores['mlm_accuracy']:.1%}")
    for entry in scores.get("sentences", []):
        typer.echo(f"pseudo-perplexity {entry['pseudo_perplexity']:,.1f}: {entry['sentence']}")


@evaluate_app.command("nsp-zero-shot")
def evaluate_nsp_zero_shot(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other with an NSP head.")],
    data: Annotated[Path, typer.Argument(help="Folder with the tasks' data, such as FewCLUE's 'datasets'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="A FewCLUE task, or a YAML file of your own tasks; may be repeated. [all nine]"),
    ] = None,
    method: Annotated[str, typer.Option(help="nsp, pet (masked words), or both.")] = "both",
    max_length: Annotated[int, typer.Option(min=16, help="Tokens of a text with its prompt.")] = 128,
) -> None:
    """What the model can do without training for it, beside published results; exit 1 if a task failed."""
    from kexue_train.artifacts import write_atomic  # noqa: PLC0415
    from kexue_train.evaluate.json_text import json_text  # noqa: PLC0415
    from kexue_train.evaluate.zero_shot.evaluate_tasks import (  # noqa: PLC0415  # loads torch
        METHODS_BY_NAME,
        evaluate_zero_shot,
    )
    from kexue_train.evaluate.zero_shot.task import load_tasks  # noqa: PLC0415

    methods = METHODS_BY_NAME.get(method)
    if methods is None:
        raise ConfigError(f"--method {method!r} is not known; choose {', '.join(METHODS_BY_NAME)}")
    tasks = load_tasks(task or [])
    with _progress() as progress:
        results = evaluate_zero_shot(model, data, tasks, methods=methods, max_length=max_length, progress=progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, json_text(results.model_dump(mode="json")))
    _print_zero_shot(results)
    typer.echo(f"{out}: {len(tasks)} tasks")
    raise typer.Exit(int(any(result.failures for result in results.tasks)))


def _progress() -> Any:
    from rich.console import Console  # noqa: PLC0415

    from kexue_train.terminal import SingleStage  # noqa: PLC0415

    return SingleStage("evaluate", Console(stderr=True))


def _print_zero_shot(results: Any) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from kexue_train.evaluate.zero_shot.table import header_of, remarks_on, rows_of  # noqa: PLC0415

    table = Table(box=None, padding=(0, 1, 0, 0))
    for number, title in enumerate(header_of(results)):
        table.add_column(title, justify="left" if number == 0 else "right")
    for row in rows_of(results):
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    for remark in remarks_on(results):
        console.print(remark, markup=False, soft_wrap=True)
