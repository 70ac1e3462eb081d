"""Commands about whole runs: what this machine can do, what a run will take, the run itself and its report."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from kexue_train.cli.commands import AsJson, ConfigFile, Overrides, Ray, command, print_json, ray_override
from kexue_train.foundation.errors import ConfigError

runs_app = typer.Typer()


@command(runs_app, "doctor", example="kexue doctor --run-dir /data/runs")
def doctor_command(
    run_dir: Annotated[Path, typer.Option(help="Where a run would write.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """Say what this machine has, what is missing and how to fix it; exit 1 if a run would fail."""
    from kexue_train.cli.doctor import diagnose  # noqa: PLC0415  # loads torch

    checks = diagnose(run_dir=run_dir)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        _print_checks(checks)
    raise typer.Exit(int(any(check.status == "failure" for check in checks)))


@command(runs_app, "init", example="kexue init my-encoder 'corpus/*.jsonl' --hours 2")
def init_command(
    folder: Annotated[Path, typer.Argument(help="New folder of the configuration; the run gets its name.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...", help="Files, folders or globs of text (default: this machine's documentation)."
        ),
    ] = None,
    hours: Annotated[float, typer.Option(min=0.05, help="For the whole run on this machine.")] = 1.0,
    text_key: Annotated[str, typer.Option(help="Key or column of the text.")] = "text",
    as_json: AsJson = False,
) -> None:
    """Look at data and machine, and write a configuration to begin with: FOLDER/config.yaml."""
    from kexue_train.pipeline.proposal import choose, survey, write  # noqa: PLC0415

    write.require_no_file(folder)
    data, hardware = survey.survey_data(inputs or [], text_key), survey.survey_hardware(folder)
    request = choose.Request(data, hardware, write.run_name(folder), hours, text_key)
    proposal = choose.propose(request)
    path = write.write_proposal(folder, request, proposal)
    for warning in choose.find_warnings(request, proposal):
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json({"config": str(path), "values": proposal.values, "reasons": proposal.reasons})
        return
    for title, line in write.describe(request, proposal).items():
        typer.echo(f"{title:<9} {line}")
    typer.echo(
        f"\n{path} gives the reason of each choice. Change what you like, try it in two minutes, then run it:\n\n"
        f"  kexue try {shlex.quote(str(path))}\n  {write.launch_command(path)}"
    )


@command(runs_app, "plan", example="kexue plan --config configs/base.yaml --text-size 1TB execution.num_workers=64")
def plan_command(
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
    from kexue_train.cli.terminal import open_console  # noqa: PLC0415
    from kexue_train.foundation.runtime import available_cpus, available_memory_bytes  # noqa: PLC0415
    from kexue_train.pipeline.plan import (  # noqa: PLC0415
        Machine,
        find_sources,
        foresee_missing_pairs,
        plan_run,
        plan_values,
        print_plan,
    )
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415

    run = RunConfig.load(config, overrides or [])
    sources = find_sources(run, text_size)
    machine = Machine(run.execution.num_workers or available_cpus(), available_memory_bytes())
    planned = plan_run(run, sources, machine, tokens_per_second=tokens_per_second)
    if as_json:
        print_json(plan_values(planned))
    else:
        print_plan(planned, open_console())
    if warning := foresee_missing_pairs(run, sources):
        typer.echo(warning, err=True)


@command(runs_app, "pipeline", example="kexue pipeline --config configs/demo.yaml train.steps=200")
def pipeline_command(
    config: ConfigFile,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder (default: runs/NAME).")] = None,
    overrides: Overrides = None,
    ray: Ray = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Empty the run folder and start over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run all stages, from corpus to report, without Prefect."""
    from kexue_train.cli.ending import print_ending  # noqa: PLC0415
    from kexue_train.cli.terminal import make_board, open_console  # noqa: PLC0415
    from kexue_train.foundation.json_logs import enter_run  # noqa: PLC0415
    from kexue_train.foundation.run_dir import RunDir  # noqa: PLC0415
    from kexue_train.pipeline.run import open_run, run_stage  # noqa: PLC0415
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415
    from kexue_train.pipeline.stages import stages_of  # noqa: PLC0415
    from kexue_train.report.summary import summarise  # noqa: PLC0415

    run_config = RunConfig.load(config, [*(overrides or []), *ray_override(ray)])
    root, console = run_dir or Path("runs", run_config.name), open_console(stderr=as_json)
    enter_run(root)
    with RunDir(root).lock():
        run = open_run(run_config, root, fresh=fresh)
        stages = stages_of(run_config)
        with make_board([stage.name for stage in stages], console) as board:
            for stage in stages:
                board.start(stage.name)
                result = run_stage(stage, run, board)
                board.finish(stage.name, result.summary, result.seconds, made=result.made)
    if as_json:
        print_json(asdict(summarise(root)))
    else:
        print_ending(root, console)


@command(runs_app, "report", example="kexue report runs/demo --open")
def report_command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folder, finished or not; several: compare.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File of a comparison (default: comparison.html).")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the page about a run, RUN/report/index.html, or one that compares several."""
    from kexue_train.pipeline.stages import STAGES  # noqa: PLC0415
    from kexue_train.report.build_report import build_comparison, build_report  # noqa: PLC0415  # loads jinja2
    from kexue_train.report.summary import summarise  # noqa: PLC0415

    if out and len(runs) == 1:
        raise ConfigError("--out is for comparisons; the page about one run is its report/index.html")
    path = build_report(runs[0], STAGES) if len(runs) == 1 else build_comparison(runs, out or Path("comparison.html"))
    if as_json:
        print_json({"page": path, "runs": [asdict(summarise(run)) for run in runs]})
    else:
        typer.echo(str(path))
    if open_page:
        typer.launch(path.absolute().as_uri())


@command(runs_app, "metrics", example="kexue metrics runs --port 9464")
def metrics_command(
    root: Annotated[Path, typer.Argument(metavar="RUNS", help="A run folder, or a folder of run folders.")] = Path(
        "runs"
    ),
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default: 127.0.0.1, which other machines do not reach).")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free one (default: 9464).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve the figures of runs to Prometheus until it is stopped, or print them once (--json)."""
    from threading import Event  # noqa: PLC0415

    from kexue_train.metrics.prometheus import read_figures, serve  # noqa: PLC0415

    if as_json:
        if host is not None or port is not None:
            raise ConfigError("--host and --port do nothing beside --json, which serves nothing; leave them out")
        print_json(read_figures(root))
        return
    typer.echo(f"{serve(root, host or '127.0.0.1', 9464 if port is None else port)}  (Ctrl-C ends it)")
    Event().wait()


def _print_checks(checks: list[Any]) -> None:
    from rich.markup import escape  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    from kexue_train.cli.terminal import open_console  # noqa: PLC0415

    styles = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failure": "[red]failure[/]"}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("", "check", "found", "fix"):
        table.add_column(title, overflow="fold")
    for check in checks:
        table.add_row(styles[check.status], *map(escape, (check.name, check.finding, check.fix or "")))
    open_console().print(table)
