"""The ``kexue`` command. Each command loads only what it needs, so ``--help`` answers at once."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue_train import __version__
from kexue_train.cli.commands import HELP_OPTIONS, QuickGroup
from kexue_train.cli.data import data_app
from kexue_train.cli.errors import run_command
from kexue_train.cli.evaluate import evaluate_app
from kexue_train.cli.finetune import finetune_app
from kexue_train.foundation.errors import ConfigError

if TYPE_CHECKING:
    from kexue_train.foundation.artifacts import Manifest


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kexue {__version__}")
        raise typer.Exit


TREE = {
    "Before a run": ("doctor", "plan"),
    "A whole run": ("pipeline",),
    "Data": ("corpus-from-docs", "shuffle", "tokenizer", "samples", "verify"),
    "Training": ("train", "export", "import-weights"),
    "Results": ("evaluate", "finetune", "report"),
}
"""The commands in the order of the data, under the headings of ``kexue --help``."""


class KexueGroup(QuickGroup):
    """The command ``kexue``, whose help lists the commands under headings."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # click's
        """Return the commands in the order of the data."""
        return [name for names in TREE.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  # click's
        """Write a list for each heading."""
        for heading, names in TREE.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:16}", self.commands[name].get_short_help_str(100)) for name in names])


app = typer.Typer(
    cls=KexueGroup,
    help="Raw text in, a pretrained RoFormerV2 encoder out. Each command is safe to interrupt; run it again to resume.",
    epilog="Add --debug to any command to see a traceback. Exit code 2: something to correct; 1: something failed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP_OPTIONS,
)
app.add_typer(data_app)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(finetune_app, name="finetune")


@app.callback()
def _kexue(
    version: Annotated[  # its callback acts
        bool, typer.Option("--version", is_eager=True, help="Show the version and exit.", callback=_show_version)
    ] = False,
) -> None:
    """Take the options of ``kexue`` itself."""


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; left alone if it holds other work.")]
ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="YAML file of a run, such as configs/demo.yaml.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value", help="Values that replace the file's.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Every random choice derives from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Local worker processes (default: the CPUs).")]
Ray = Annotated[str | None, typer.Option("--ray", metavar="ADDRESS", help="Run the tasks on this Ray cluster instead.")]


def main() -> None:
    """Run the command; errors become one paragraph and an exit code."""
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "1000")  # for Arrow, before it is loaded; see keep_freed_memory
    sys.exit(run_command(app, sys.argv[1:], "kexue"))


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
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415
    from kexue_train.train.launch import launcher_of  # noqa: PLC0415
    from kexue_train.train.pretrain import pretrain  # noqa: PLC0415
    from kexue_train.train.stage import job_of  # noqa: PLC0415

    chosen = [*(overrides or []), *([f"train.workers.launcher={launcher}"] if launcher else [])]
    run_config = RunConfig.load(config, [*chosen, *_on_ray(ray)])
    job = job_of(run_config)
    with RunDir(out).lock(), _progress("train") as progress:
        write_atomic(out / "config.yaml", run_config.to_yaml())
        launch = launcher_of(job, out / "config.yaml", samples, out, run_config.execution, port)
        manifest = pretrain(job, samples, out, launch=launch, progress=progress)
    _report(out, manifest, as_json)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A step-XXXXXXXX folder, or the folder of a finished training.")],
    out: Out,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as a Hugging Face folder and check that it computes the same."""
    from kexue_train.export.export_hf import export_hf  # noqa: PLC0415  # loads torch and transformers
    from kexue_train.train.stage import last_checkpoint  # noqa: PLC0415

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
    from kexue_train.pipeline.stages import STAGES  # noqa: PLC0415
    from kexue_train.report.build_report import build_comparison, build_report  # noqa: PLC0415  # loads jinja2

    if out and len(runs) == 1:
        raise ConfigError("--out is for comparisons; the page about one run is its report/index.html")
    path = build_report(runs[0], STAGES) if len(runs) == 1 else build_comparison(runs, out or Path("comparison.html"))
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
    from kexue_train.pipeline.plan import Machine, find_sources, plan_run, plan_values, print_plan  # noqa: PLC0415
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
    from kexue_train.pipeline.run import open_run, run_stage  # noqa: PLC0415
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415
    from kexue_train.pipeline.stages import STAGES  # noqa: PLC0415

    run_config = RunConfig.load(config, [*(overrides or []), *_on_ray(ray)])
    root, console = run_dir or Path("runs", run_config.name), Console()
    with RunDir(root).lock():
        run = open_run(run_config, root, fresh=fresh)
        with make_board([stage.name for stage in STAGES], console) as board:
            for stage in STAGES:
                board.start(stage.name)
                result = run_stage(stage, run, board)
                board.finish(stage.name, result.summary, result.seconds, made=result.made)
    print_ending(root, console)


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
