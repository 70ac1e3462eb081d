"""``kexue try``: every stage of a run on a small sample, and a forecast of the whole."""

from pathlib import Path
from typing import Annotated

import typer

from kexue_train.cli.commands import AsJson, Overrides, QuickGroup, command, print_json

trying_app = typer.Typer(cls=QuickGroup)


@command(trying_app, "try", example="kexue try configs/demo.yaml --price-per-hour 2.5")
def try_command(
    config: Annotated[str, typer.Argument(help="YAML file of a run, or the name of a shipped one, such as demo.")],
    overrides: Overrides = None,
    minutes: Annotated[float, typer.Option(min=0.25, help="About how long it may take.")] = 2.0,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the trial, emptied first (default: runs/NAME.try).")
    ] = None,
    text_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Forecast for so much text, such as 100GB, not for the inputs.")
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of the machine that runs it, to forecast the cost.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run every stage on about 1 % of the corpus in two minutes, and forecast time, disk, loss and cost."""
    from kexue_train.cli.terminal import make_board, open_console  # noqa: PLC0415
    from kexue_train.foundation.run_dir import RunDir  # noqa: PLC0415
    from kexue_train.foundation.runtime import (  # noqa: PLC0415
        available_cpus,
        available_memory_bytes,
        free_disk_bytes,
    )
    from kexue_train.pipeline.plan import Machine  # noqa: PLC0415
    from kexue_train.pipeline.run_config import RunConfig  # noqa: PLC0415
    from kexue_train.pipeline.trial import findings, forecast, run, show, shrink  # noqa: PLC0415

    given = RunConfig.load(Path(config), overrides or [])
    machine = Machine(given.execution.num_workers or available_cpus(), available_memory_bytes())
    root = run_dir or Path("runs", shrink.trial_name(given))
    console = open_console(stderr=as_json)
    plan = run.plan_trial(given, machine, root, 60 * minutes, text_size)
    try:
        with RunDir(root).lock(), make_board(plan.stages, console) as board:
            trial = run.run_trial(plan, board)
    except KeyboardInterrupt:
        typer.echo(f"stopped; nothing but {root} was written, which the next trial empties", err=True)
        raise SystemExit(130) from None
    found = forecast.forecast_run(
        given, plan.trial, trial.text, machine, trial.measures, is_reduced=plan.batches.is_reduced
    )
    doubts = list(findings.find_doubts(trial, found, free_disk_bytes(root)))
    commands = show.next_commands(config, overrides or [], trial)
    if as_json:
        print_json(show.forecast_values(trial, found, doubts, price_per_hour, commands))
        return
    show.print_forecast(trial, found, doubts, price_per_hour, console)
    typer.echo("\nNext:\n" + "\n".join(f"  {line}" for line in commands))
