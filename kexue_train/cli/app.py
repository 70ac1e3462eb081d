"""The ``kexue`` command. Each command loads only what it needs, so ``--help`` answers at once."""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue_train.cli.evaluate import evaluate_app
from kexue_train.cli.finetune import finetune_app
from kexue_train.foundation.errors import ConfigError, KexueError

if TYPE_CHECKING:
    from kexue_train.executor import Executor
    from kexue_train.foundation.artifacts import Manifest

app = typer.Typer(
    help="Raw text in, a pretrained RoFormerV2 encoder out. Every command can be killed and run again: it goes on.",
    epilog="Add --debug to any command to see a traceback. Exit code 2: something to correct; 1: something failed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(finetune_app, name="finetune")

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; left alone if it holds other work.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="YAML file of a run, such as configs/demo.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value", help="Values that replace the file's.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Every random choice derives from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Local worker processes (default: the CPUs).")]
Ray = Annotated[str | None, typer.Option("--ray", metavar="ADDRESS", help="Run the tasks on this Ray cluster instead.")]


_INTERRUPTED = 130  # what typer makes of Ctrl-C


def main() -> None:
    """Run the command; errors become one paragraph and an exit code."""
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "1000")  # for Arrow, before it is loaded; see keep_freed_memory
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="kexue")
    except KexueError as error:
        _fail(str(error), error.exit_code, debug)
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:
            typer.echo("stopped; what is finished is kept: the same command goes on from there", err=True)
        raise
    except OSError as error:
        _fail(*_explain_os_error(error), debug)
    except Exception as error:  # noqa: BLE001  # the border to the person at the terminal
        name = f"{type(error).__name__}: {error}"
        _fail(f"internal error, {name}. Run again with --debug for the traceback, and please report it.", 1, debug)


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        raise  # noqa: PLE0704  # called from the except blocks of main only
    typer.echo(f"error: {message}", err=True)
    sys.exit(code)


def _explain_os_error(error: OSError) -> tuple[str, int]:
    where = f"{error.filename}: " if error.filename else ""
    again = "free some space, then run the same command again: finished work is kept"
    advice = {
        errno.ENOSPC: f"the disk is full; {again}",
        errno.EDQUOT: f"the disk quota is used up; {again}",
        errno.EACCES: "permission denied; check the owner and mode of the path, or choose another",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOENT: "no such file or folder; check the path",
        errno.EMFILE: "too many open files; raise the limit with ulimit -n",
    }
    known = advice.get(error.errno or 0)
    return (f"{where}{known}", 2) if known else (f"{where}{error.strerror or error}", 1)


@app.command()
def doctor(
    run_dir: Annotated[Path, typer.Option(help="Where a run would write.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """Say what this machine has, what is missing and how to fix it; exit 1 if a run would fail."""
    from kexue_train.cli.doctor import diagnose  # noqa: PLC0415  # loads torch

    checks = diagnose(run_dir=run_dir)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        _print_checks(checks)
    raise typer.Exit(int(any(check.status == "failure" for check in checks)))


@app.command("corpus-from-docs")
def corpus_from_docs(
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines file to write.")],
    max_size: Annotated[str, typer.Option(help="About how much text to take.")] = "16MB",
) -> None:
    """Make a real corpus from the documentation and docstrings installed on this machine."""
    from kexue_train.corpus.installed_docs import write_docs_corpus  # noqa: PLC0415
    from kexue_train.foundation.runtime import parse_size  # noqa: PLC0415

    with _progress("corpus-from-docs") as progress:
        statistics = write_docs_corpus(out, max_bytes=parse_size(max_size), progress=progress)
    typer.echo(f"{out}: {json.dumps(statistics, ensure_ascii=False)}")


@app.command()
def shuffle(
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Folder to write, or a file (.txt, .jsonl, .parquet, .arrow), or - for standard output."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs, @lists of them, URIs, hf://NAME, or - (standard input): txt, jsonl, json, "
            "csv, tsv, parquet, arrow, each also .gz, .zst, .bz2, .xz, .lz4."
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Memory of all processes together, such as 2GB (default: half of what is free).")
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="Number of output files.")] = None,
    shard_size: Annotated[str, typer.Option(help="Or: about how much text an output file holds.")] = "256MB",
    seed: Seed = 0,
    input_format: Annotated[
        str, typer.Option("--format", help="auto, text, jsonl, json, csv, tsv, parquet or arrow.")
    ] = "auto",
    document: Annotated[str, typer.Option(help="In text files a document is a line, block or file.")] = "line",
    text_key: Annotated[
        list[str] | None, typer.Option(help="Key or column of the text, such as a.b; several are joined. [text]")
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Another key or column to keep; may be repeated.")] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="INPUT=W", help="Take documents of INPUT W times, such as wiki.jsonl=2.")
    ] = None,
    on_bad_record: Annotated[str, typer.Option(help="fail, or skip: count it and keep it aside.")] = "fail",
    dedup: Annotated[str, typer.Option(help="none, or exact: keep one of equal documents.")] = "none",
    min_chars: Annotated[int | None, typer.Option(help="Drop shorter documents.")] = None,
    max_chars: Annotated[int | None, typer.Option(help="Drop longer documents.")] = None,
    filters: Annotated[
        list[str] | None, typer.Option("--filter", metavar="RULE=SHARE", help="Other rules, see docs/shuffle.md.")
    ] = None,
    keep_dropped: Annotated[bool, typer.Option("--keep-dropped", help="Keep what the filters drop.")] = False,
    to: Annotated[str | None, typer.Option(help="arrow, parquet, jsonl or lines (default: by --out).")] = None,
    spill: Annotated[
        str | None, typer.Option(help="Folder for intermediate files, on each machine's own disk.")
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Put documents on disk in exactly uniform random order, in bounded memory."""
    from kexue_train.shuffle.config import ShuffleConfig  # noqa: PLC0415
    from kexue_train.shuffle.shuffle_corpus import shuffle_corpus  # noqa: PLC0415
    from kexue_train.shuffle.single_file import STANDARD_OUTPUT, output_of, shuffle_to_file  # noqa: PLC0415

    rules = {"min_chars": min_chars, "max_chars": max_chars, **_pairs(filters, "--filter")}
    values = {
        "shards": shards,
        "shard_size": shard_size,
        "memory": memory,
        "spill": spill,
        "format": input_format,
        "document": document,
        "text_key": text_key or "text",
        "keep": keep or [],
        "weights": _pairs(weight, "--weight"),
        "filters": {name: value for name, value in rules.items() if value is not None},
        "keep_dropped": keep_dropped,
        "on_bad_record": on_bad_record,
        "dedup": dedup,
        "output": to or output_of(out) or ("lines" if out == STANDARD_OUTPUT else "arrow"),
    }
    config = ShuffleConfig.parse(values, where="kexue shuffle")
    sources = inputs or _piped_input()
    executor = _executor(workers, ray)
    is_file = out == STANDARD_OUTPUT or output_of(out) is not None
    with _progress("shuffle") as progress:
        if is_file:
            manifest = shuffle_to_file(config, sources, out, seed=seed, executor=executor, progress=progress)
        else:
            manifest = shuffle_corpus(config, sources, Path(out), seed=seed, executor=executor, progress=progress)
    if out != STANDARD_OUTPUT:
        _report(Path(out), manifest, as_json)


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="Folder that a stage wrote.")], as_json: AsJson = False) -> None:
    """Read a stage's folder again and compare every checksum."""
    from kexue_train.foundation.artifacts import read_manifest, verify_artifact  # noqa: PLC0415
    from kexue_train.samples.verify import verify_sample_shards  # noqa: PLC0415
    from kexue_train.shuffle.text_shards import verify_text_shards  # noqa: PLC0415

    checks = {"text_shards": verify_text_shards, "sample_shards": verify_sample_shards}
    check = checks.get(read_manifest(folder).kind, verify_artifact)
    with _progress("verify") as progress:
        manifest = check(folder, progress)
    _report(folder, manifest, as_json, verb="whole")


@app.command()
def tokenizer(
    shards: Annotated[Path, typer.Argument(help="Folder of text shards.")],
    out: Out,
    source: Annotated[
        Path | None, typer.Option("--from", help="Take this vocab.txt, tokenizer.json, or folder with one.")
    ] = None,
    vocab_size: Annotated[int, typer.Option(help="Pieces, the five special tokens included.")] = 8192,
    lowercase: Annotated[bool, typer.Option(help="Lower-case the text and strip accents.")] = True,
    max_bytes: Annotated[str, typer.Option(help="Train on at most so much text, such as 200MB.")] = "1GB",
    max_unknown_rate: Annotated[float, typer.Option(help="Refuse if more of the tokens are unknown.")] = 0.05,
    as_json: AsJson = False,
) -> None:
    """Train a WordPiece vocabulary on text shards, or take an existing one."""
    from kexue_train.samples.config import TokenizerConfig  # noqa: PLC0415
    from kexue_train.samples.tokenizer import train_tokenizer  # noqa: PLC0415

    values = {
        "source": source,
        "vocab_size": vocab_size,
        "lowercase": lowercase,
        "max_size": max_bytes,
        "max_unknown_rate": max_unknown_rate,
    }
    config = TokenizerConfig.parse(values, where="kexue tokenizer")
    with _progress("tokenizer") as progress:
        manifest = train_tokenizer(config, shards, out, progress=progress)
    _report(out, manifest, as_json)
    if not as_json:
        facts = manifest.statistics
        rates = f"{facts['bytes_per_token']:.2f} bytes per token, {facts['unknown_rate']:.2%} unknown"
        typer.echo(f"{facts['vocab_size']:,} pieces; {rates}")


@app.command()
def samples(
    shards: Annotated[Path, typer.Argument(help="Folder of text shards.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    out: Out,
    seq_len: Annotated[int, typer.Option(help="Token slots of a row.")] = 512,
    nsp: Annotated[bool, typer.Option(help="Make sentence pairs.")] = True,
    whole_word: Annotated[bool, typer.Option(help="Mask whole words.")] = True,
    words: Annotated[str, typer.Option(help="Chinese words: jieba, or pmi: phrases found in the corpus.")] = "jieba",
    dictionary: Annotated[Path | None, typer.Option(help="More words for jieba, one per line.")] = None,
    shuffle: Annotated[str, typer.Option(help="Mix the rows of each shard (shard), or of all (global).")] = "shard",
    seed: Seed = 0,
    workers: Workers = None,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Turn text shards into packed rows for MLM and NSP."""
    from kexue_train.samples.build_samples import build_samples  # noqa: PLC0415
    from kexue_train.samples.config import SampleConfig  # noqa: PLC0415

    values = {
        "seq_len": seq_len,
        "nsp": nsp,
        "whole_word": whole_word,
        "words": words,
        "dictionary": dictionary,
        "shuffle": shuffle,
    }
    config = SampleConfig.parse(values, where="kexue samples")
    executor = _executor(workers, ray)
    with _progress("samples") as progress:
        manifest = build_samples(config, shards, tokenizer, out, seed=seed, executor=executor, progress=progress)
    _report(out, manifest, as_json)


@app.command()
def train(
    config: ConfigFile,
    samples: Annotated[
        Path,
        typer.Option(
            help="Folder of sample shards, folder of such for several lengths, or YAML: 'folder: weight' lines."
        ),
    ],
    out: Out,
    overrides: Overrides = None,
    launcher: Annotated[
        str | None, typer.Option(help="ray, torchrun (needs no Ray) or local (one worker, in this process).")
    ] = None,
    ray: Ray = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="torchrun's port (default: any free one).")] = None,
    as_json: AsJson = False,
) -> None:
    """Pretrain on sample shards; resumes from the last checkpoint."""
    from kexue_train.foundation.artifacts import write_atomic  # noqa: PLC0415
    from kexue_train.foundation.run_dir import RunDir  # noqa: PLC0415
    from kexue_train.pipeline.run import Run  # noqa: PLC0415
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415
    from kexue_train.train.launch import launcher_of  # noqa: PLC0415
    from kexue_train.train.pretrain import pretrain  # noqa: PLC0415

    chosen = [*(overrides or []), *([f"train.launcher={launcher}"] if launcher else [])]
    run_config = RunConfig.load(config, [*chosen, *_on_ray(ray)])
    run = Run(run_config, RunDir(out))
    with RunDir(out).lock(), _progress("train") as progress:
        write_atomic(out / "config.yaml", run_config.to_yaml())
        launch = launcher_of(run.job, out / "config.yaml", samples, out, run_config.execution, port)
        manifest = pretrain(run.job, samples, out, launch=launch, progress=progress)
    _report(out, manifest, as_json)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A step-XXXXXXXX folder, or the folder of a finished training.")],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder and check that it computes the same."""
    from kexue_train.export.export_hf import export_hf  # noqa: PLC0415  # loads torch and transformers
    from kexue_train.pipeline.run import last_checkpoint  # noqa: PLC0415

    is_training = (checkpoint / "checkpoints").is_dir()
    manifest = export_hf(last_checkpoint(checkpoint) if is_training else checkpoint, out)
    _report(out, manifest, as_json)


@app.command("import-weights")
def import_weights(
    folder: Annotated[
        Path,
        typer.Argument(help="JunnYu/transformers folder (config.json, weights) or bert4keras TensorFlow checkpoint."),
    ],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write published RoFormerV2 weights as a Hugging Face folder; every tensor must fit."""
    from kexue_train.export.import_weights import import_weights as run  # noqa: PLC0415  # loads torch and transformers

    with _progress("import-weights") as progress:
        manifest = run(folder, out, progress=progress)
    _report(out, manifest, as_json)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folder, finished or not; several: compare.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of a comparison (default: comparison.html).")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Write the page about a run, RUN/report/index.html, or one that compares several."""
    from kexue_train.report.build_report import build_comparison, build_report  # noqa: PLC0415  # loads jinja2

    if out and len(runs) == 1:
        raise ConfigError("--out is for comparisons; the page about one run is its report/index.html")
    path = build_report(runs[0]) if len(runs) == 1 else build_comparison(runs, out or Path("comparison.html"))
    typer.echo(str(path))
    if open_page:
        typer.launch(path.absolute().as_uri())


@app.command()
def plan(
    config: ConfigFile,
    overrides: Overrides = None,
    text_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for so much text, such as 100GB, in place of the inputs.")
    ] = None,
    tokens_per_second: Annotated[
        float | None,
        typer.Option(min=1e-6, help="Of training, all workers together: from metrics.jsonl of a short run."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a run will take: tasks, disk, memory, GPU memory, time. Runs nothing."""
    from rich.console import Console  # noqa: PLC0415

    from kexue_train.foundation.runtime import available_cpus, available_memory_bytes  # noqa: PLC0415
    from kexue_train.pipeline.plan.plan_run import Machine, find_sources, plan_run  # noqa: PLC0415
    from kexue_train.pipeline.plan.table import plan_values, print_plan  # noqa: PLC0415
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415

    run = RunConfig.load(config, overrides or [])
    sources = find_sources(run, text_size)
    machine = Machine(run.execution.num_workers or available_cpus(), available_memory_bytes())
    planned = plan_run(run, sources, machine, tokens_per_second=tokens_per_second)
    if as_json:
        typer.echo(json.dumps(plan_values(planned), indent=2))
    else:
        print_plan(planned, Console())


@app.command()
def pipeline(
    config: ConfigFile,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder (default: runs/NAME).")] = None,
    overrides: Overrides = None,
    ray: Ray = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Empty the run folder and start over.")] = False,
) -> None:
    """Run all stages, from corpus to report, without Prefect."""
    from rich.console import Console  # noqa: PLC0415

    from kexue_train.cli.terminal import make_board, print_ending  # noqa: PLC0415
    from kexue_train.foundation.run_dir import RunDir  # noqa: PLC0415
    from kexue_train.pipeline.run import STAGES, open_run, run_stage  # noqa: PLC0415
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415

    run_config = RunConfig.load(config, [*(overrides or []), *_on_ray(ray)])
    root, console = run_dir or Path("runs", run_config.name), Console()
    with RunDir(root).lock():
        run = open_run(run_config, root, fresh=fresh)
        with make_board(list(STAGES), console) as board:
            for stage in STAGES:
                board.start(stage)
                result = run_stage(stage, run, board)
                board.finish(stage, result.summary, result.seconds, made=result.made)
    print_ending(root, console)


def _pairs(options: list[str] | None, name: str) -> dict[str, float]:
    """``KEY=NUMBER`` options as a mapping."""
    values = {}
    for option in options or []:
        key, equals, number = option.rpartition("=")
        try:
            values[key] = float(number)
        except ValueError:
            equals = ""
        if not equals or not key:
            raise ConfigError(f"{name} {option!r} is not of the form KEY=NUMBER, such as {name} wiki.jsonl=2")
    return values


def _piped_input() -> list[str]:
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no inputs; name files, folders or globs, or pipe lines of text in")
    return ["-"]


def _executor(workers: int | None, ray: str | None) -> Executor:
    from kexue_train.executor import LocalExecutor, RayExecutor  # noqa: PLC0415
    from kexue_train.foundation.runtime import available_cpus  # noqa: PLC0415

    if ray and workers:
        raise ConfigError("--workers and --ray are both given; local processes or a Ray cluster, not both")
    return RayExecutor(None if ray == "local" else ray) if ray else LocalExecutor(workers or available_cpus())


def _on_ray(address: str | None) -> list[str]:
    """The override that ``--ray`` stands for."""
    return [f"execution.ray_address={address}"] if address and address != "local" else []


def _progress(stage: str) -> Any:
    from rich.console import Console  # noqa: PLC0415

    from kexue_train.cli.terminal import SingleStage  # noqa: PLC0415

    return SingleStage(stage, Console(stderr=True))


def _report(folder: Path, manifest: Manifest, as_json: bool, verb: str = "made") -> None:
    from kexue_train.foundation.runtime import format_size  # noqa: PLC0415

    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    rows = f"{manifest.rows:,} rows, " if manifest.rows else ""
    left_out = {"blank": manifest.statistics.get("blank", 0), "duplicate": manifest.statistics.get("duplicates", 0)}
    left_out |= manifest.statistics.get("rejected", {})
    counted = "".join(f", {count:,} {reason}" for reason, count in left_out.items() if count)
    size = format_size(manifest.bytes)
    typer.echo(f"{folder}: {manifest.kind} {verb}, {rows}{len(manifest.files)} files, {size}{counted}")


def _print_checks(checks: list[Any]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    marks = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failure": "[red]failure[/]"}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "check", "found", "fix"):
        table.add_column(title, overflow="fold")
    for check in checks:
        table.add_row(marks[check.status], *map(escape, (check.name, check.finding, check.fix or "")))
    Console().print(table)
