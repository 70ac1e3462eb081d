"""``kexue evaluate``: what a model can do, as a JSON file and a few lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kexue_train.foundation.errors import ConfigError

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
    """Score masked words and next sentences of held-out text, compared with baselines."""
    from kexue_train.cli.terminal import write_and_print  # noqa: PLC0415
    from kexue_train.downstream.evaluate.load_model import load_masked_lm  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.evaluate.masked_lm import evaluate_masked_lm  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.evaluate.masked_words import pseudo_perplexities, read_sentences  # noqa: PLC0415  # loads torch

    texts = read_sentences(sentences) if sentences else []
    with _progress() as progress:
        result = evaluate_masked_lm(model, data, seed=seed, batch_size=batch_size, progress=progress)
        if texts:
            scored = pseudo_perplexities(load_masked_lm(model), texts, progress)
            result = result.model_copy(update={"sentences": scored})
    write_and_print(out, result, f"MLM loss {result.mlm_loss:.3f} nats, accuracy {result.mlm_accuracy:.1%}")


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
    """Ask tasks that the model was not trained for, compared with published results; exit 1 if a task failed."""
    from kexue_train.cli.terminal import write_and_print  # noqa: PLC0415
    from kexue_train.downstream.evaluate.zero_shot.evaluate_tasks import (  # noqa: PLC0415  # loads torch
        METHODS_BY_NAME,
        evaluate_zero_shot,
    )
    from kexue_train.downstream.evaluate.zero_shot.task import load_tasks  # noqa: PLC0415

    methods = METHODS_BY_NAME.get(method)
    if methods is None:
        raise ConfigError(f"--method {method!r} is not known; choose {', '.join(METHODS_BY_NAME)}")
    tasks = load_tasks(task or [])
    with _progress() as progress:
        results = evaluate_zero_shot(model, data, tasks, methods=methods, max_length=max_length, progress=progress)
    raise typer.Exit(write_and_print(out, results, f"{len(tasks)} tasks"))


@evaluate_app.command("sts")
def evaluate_sts(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other that AutoModel opens.")],
    data: Annotated[Path, typer.Argument(help="Folder with the sets of sentence pairs, each a folder of its own.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON file to write.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="A known set, or a folder in DATA; may be repeated. [the known ones in DATA]"),
    ] = None,
    pooling: Annotated[
        list[str] | None, typer.Option(help="cls, mean or first-last; may be repeated. [all three]")
    ] = None,
    whitening: Annotated[
        str,
        typer.Option(
            metavar="all|K|none|FOLDER",
            help="Dimensions to keep of each set's own whitening, none of it, or a folder of 'finetune whitening'.",
        ),
    ] = "all",
    max_length: Annotated[int, typer.Option(min=8, help="Tokens of a sentence.")] = 128,
) -> None:
    """Measure how well cosines of sentence vectors rank pairs by similarity; exit 1 if a set failed."""
    from kexue_train.cli.terminal import write_and_print  # noqa: PLC0415
    from kexue_train.downstream.evaluate.sentence_vectors.choices import choose_poolings, choose_whitening  # noqa: PLC0415
    from kexue_train.downstream.evaluate.sentence_vectors.evaluate_sts import evaluate_sts as run  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import choose_sets  # noqa: PLC0415

    chosen, poolings, white = choose_sets(sets or [], data), choose_poolings(pooling), choose_whitening(whitening)
    with _progress() as progress:
        results = run(model, data, chosen, poolings=poolings, whitening=white, max_length=max_length, progress=progress)
    raise typer.Exit(write_and_print(out, results, f"{len(chosen)} sets"))


@evaluate_app.command("explain")
def evaluate_explain(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other of transformers.")],
    text: Annotated[str, typer.Argument(help="Text; with one [MASK] the word at it is explained.")],
    pair: Annotated[str | None, typer.Option(help="The other text of a pair.")] = None,
    head: Annotated[
        str | None, typer.Option(help="classification, nsp or mlm (default: by the text and the model).")
    ] = None,
    answer: Annotated[str | None, typer.Option(help="Label or word to explain (default: the most probable).")] = None,
    baseline: Annotated[str, typer.Option(help="What words are compared with: mask, or zero embeddings.")] = "mask",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write .html (coloured text) or .json.")] = None,
) -> None:
    """Show which words made the model answer as it did (integrated gradients)."""
    from rich.console import Console  # noqa: PLC0415

    from kexue_train.downstream.evaluate.attribution.explain import BASELINES, HEADS, explain  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.results.explanation import (  # noqa: PLC0415
        as_html_page,
        as_terminal_text,
        strongest_words,
        summary_of,
    )
    from kexue_train.downstream.results.files import write_result  # noqa: PLC0415
    from kexue_train.foundation.artifacts import write_atomic  # noqa: PLC0415

    for name, value, allowed in (("--head", head, [*HEADS, None]), ("--baseline", baseline, BASELINES)):
        if value not in allowed:
            raise ConfigError(f"{name} {value!r} is not known; choose {', '.join(filter(None, allowed))}")
    if out is not None and out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out {out}: expected a name that ends in .html or .json")
    found = explain(model, text, pair, head=head, answer=answer, baseline=baseline)  # type: ignore[arg-type]  # checked
    console = Console(highlight=False)
    console.print(as_terminal_text(found), soft_wrap=True)
    console.print(", ".join(f"{word} {share}" for word, share in strongest_words(found)), markup=False, soft_wrap=True)
    console.print(summary_of(found), markup=False, soft_wrap=True)
    if out is not None:
        if out.suffix == ".json":
            write_result(out, found)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, as_html_page(found))
        typer.echo(str(out))


def _progress() -> Any:
    from rich.console import Console  # noqa: PLC0415

    from kexue_train.cli.terminal import SingleStage  # noqa: PLC0415

    return SingleStage("evaluate", Console(stderr=True))
