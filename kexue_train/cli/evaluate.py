"""``kexue evaluate``: what a model can do, as a JSON file and a few lines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexue_train.cli.commands import AsJson, OutFile, QuickGroup, Seed, TrustCode, command, print_result, show_progress
from kexue_train.cli.options import Given, options_of
from kexue_train.downstream.folder_code import trusting_code
from kexue_train.foundation.errors import ConfigError

if TYPE_CHECKING:
    from kexue_train.downstream.evaluate.config import EvaluateConfig
    from kexue_train.downstream.settings import ExplainSettings, SimilaritySettings, ZeroShotSettings

evaluate_app = typer.Typer(cls=QuickGroup, help="Score a model.", no_args_is_help=True)


@command(evaluate_app, "mlm", example="kexue evaluate mlm runs/demo/hf runs/demo/samples --out mlm.json")
def evaluate_mlm(
    model: Annotated[Path, typer.Argument(help="Exported model folder.")],
    data: Annotated[Path, typer.Argument(help="Folder of sample shards; the held-out rows are scored.")],
    out: OutFile,
    given: "Given[EvaluateConfig]" = options_of("kexue_train.downstream.evaluate.config:EvaluateConfig", "batch_size"),
    sentences: Annotated[
        Path | None, typer.Option(help="Text file, a sentence per line: also give the pseudo-perplexity of each.")
    ] = None,
    seed: Seed = 0,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Score masked words and next sentences of held-out text, compared with baselines."""
    from kexue_train.downstream.evaluate.masked_lm import evaluate_masked_lm  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.evaluate.masked_words import pseudo_perplexities, read_sentences  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.load_model import load_masked_lm  # noqa: PLC0415  # loads torch

    config, texts = given.config(), read_sentences(sentences) if sentences else []
    with trusting_code(trust_code), show_progress("evaluate") as progress:
        result = evaluate_masked_lm(model, data, seed=seed, batch_size=config.batch_size, progress=progress)
        if texts:
            scored = pseudo_perplexities(load_masked_lm(model), texts, progress)
            result = result.model_copy(update={"sentences": scored})
    print_result(out, result, f"MLM loss {result.mlm_loss:.3f} nats, accuracy {result.mlm_accuracy:.1%}", as_json)


@command(
    evaluate_app,
    "nsp-zero-shot",
    example="kexue evaluate nsp-zero-shot hf FewCLUE/datasets --task eprstmt --out zero_shot.json",
)
def evaluate_nsp_zero_shot(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other with an NSP head.")],
    data: Annotated[Path, typer.Argument(help="Folder with the tasks' data, such as FewCLUE's 'datasets'.")],
    out: OutFile,
    task: Annotated[
        list[str] | None,
        typer.Option(help="A FewCLUE task, or a YAML file of your own tasks; may be repeated. [all nine]"),
    ] = None,
    given: "Given[ZeroShotSettings]" = options_of("kexue_train.downstream.settings:ZeroShotSettings"),
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Ask tasks that the model was not trained for, compared with published results; exit 1 if a task failed."""
    from kexue_train.downstream.evaluate.zero_shot.evaluate_tasks import evaluate_zero_shot  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.evaluate.zero_shot.task import load_zero_shot_tasks  # noqa: PLC0415

    settings, tasks = given.config(), load_zero_shot_tasks(task or [])
    with trusting_code(trust_code), show_progress("evaluate") as progress:
        results = evaluate_zero_shot(
            model, data, tasks, methods=settings.methods, max_length=settings.max_length, progress=progress
        )
    print_result(out, results, f"{len(tasks)} tasks", as_json)


@command(evaluate_app, "sts", example="kexue evaluate sts runs/demo/hf STS --pooling mean --out sts.json")
def evaluate_similarity(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other that AutoModel opens.")],
    data: Annotated[Path, typer.Argument(help="Folder with the sets of sentence pairs, each a folder of its own.")],
    out: OutFile,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="A known set, or a folder in DATA; may be repeated. [the known ones in DATA]"),
    ] = None,
    given: "Given[SimilaritySettings]" = options_of("kexue_train.downstream.settings:SimilaritySettings"),
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure how well cosines of sentence vectors rank pairs by similarity; exit 1 if a set failed."""
    from kexue_train.downstream.evaluate.sentence_vectors.evaluate_sts import evaluate_sts  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.evaluate.sentence_vectors.score_set import choose_whitening  # noqa: PLC0415
    from kexue_train.downstream.evaluate.sentence_vectors.sts_sets import choose_sets  # noqa: PLC0415

    settings, chosen = given.config(), choose_sets(sets or [], data)
    whitening = choose_whitening(settings.whitening)
    with trusting_code(trust_code), show_progress("evaluate") as progress:
        results = evaluate_sts(
            model,
            data,
            chosen,
            poolings=tuple(dict.fromkeys(settings.pooling)),
            whitening=whitening,
            max_length=settings.max_length,
            progress=progress,
        )
    print_result(out, results, f"{len(chosen)} sets", as_json)


@command(
    evaluate_app,
    "explain",
    example="kexue evaluate explain runs/demo/hf 'If the file does not [MASK], an error is raised.' --out words.html",
)
def evaluate_explain(
    model: Annotated[Path, typer.Argument(help="Exported model folder, or any other of transformers.")],
    text: Annotated[str, typer.Argument(help="Text; with one [MASK] the word at it is explained.")],
    given: "Given[ExplainSettings]" = options_of("kexue_train.downstream.settings:ExplainSettings"),
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write .html (coloured text) or .json.")] = None,
    trust_code: TrustCode = False,
    as_json: AsJson = False,
) -> None:
    """Show which words made the model answer as it did (integrated gradients)."""
    from kexue_train.cli.terminal import open_console  # noqa: PLC0415
    from kexue_train.downstream.evaluate.explain import explain_answer  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.results.explanation import (  # noqa: PLC0415
        as_html_page,
        as_terminal_text,
        strongest_words,
        summary_of,
    )
    from kexue_train.downstream.results.files import json_text, write_result  # noqa: PLC0415
    from kexue_train.foundation.artifacts import write_atomic  # noqa: PLC0415

    asked = given.config()
    if out is not None and out.suffix not in (".html", ".json"):
        raise ConfigError(f"--out {out}: expected a name that ends in .html or .json")
    with trusting_code(trust_code):
        found = explain_answer(model, text, asked.pair, head=asked.head, answer=asked.answer, baseline=asked.baseline)
    if as_json:
        typer.echo(json_text(found.model_dump(mode="json")), nl=False)
    else:
        console = open_console(highlight=False)
        console.print(as_terminal_text(found), soft_wrap=True)
        words = ", ".join(f"{word} {share}" for word, share in strongest_words(found))
        console.print(words, summary_of(found), sep="\n", markup=False, soft_wrap=True)
    if out is not None:
        if out.suffix == ".json":
            write_result(out, found)
        else:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, as_html_page(found))
        typer.echo(str(out), err=as_json)
