"""A forecast for people and for programs."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.pipeline.plan import RunPlan, plan_values
from kexue_train.pipeline.trial.forecast import BOUNDS, Forecast
from kexue_train.pipeline.trial.run import Trial

_UNKNOWN = "?"
_HOUR = 3600.0


def print_forecast(
    trial: Trial, forecast: Forecast, doubts: Sequence[str], price: float | None, console: Console
) -> None:
    """Print what the run will take and reach, what is doubtful, and what the figures hold for."""
    console.print(f"\n{describe_basis(trial)}\n", highlight=False, markup=False)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, title in enumerate(("", "at least", "likely", "at most")):
        table.add_column(title, justify="right" if number else "left")
    for title, values in _rows(forecast, price):
        table.add_row(title, *values, style="bold" if title.startswith("all") else "")
    console.print(table)
    console.print(f"\n{describe_loss(forecast)}", highlight=False, markup=False)
    if doubts:
        console.print("\nDoubtful:")
        for line in doubts:
            console.print(f"- {line}", highlight=False, markup=False)


def describe_basis(trial: Trial) -> str:
    """Say from what the forecast was made, and for what machine it holds."""
    plan, training = trial.plan, trial.measures.training
    whole = f"{plan.size.share:.2g} of the text" if plan.size.share < 0.001 else f"{plan.size.share:.1%} of the text"
    reason = f" ({plan.size.reason})" if plan.size.reason else ""
    machine = plan.machine
    return (
        f"The whole run, from {format_size(trial.measures.text_bytes)} of text, {whole}{reason}, and "
        f"{training.steps:,} of {plan.config.train.steps:,} steps at {training.pace.likely:,.0f} tokens/s, tried in "
        f"{format_seconds(trial.seconds)}. It holds for this machine as it is now: {machine.cpus} "
        f"CPU{'s' if machine.cpus > 1 else ''}, "
        f"{format_size(machine.memory_bytes)} of free memory, training on {plan.config.train.num_workers} "
        f"worker{'s' if plan.config.train.num_workers > 1 else ''}."
    )


def describe_loss(forecast: Forecast) -> str:
    """Say what the loss is of, and how far to trust it."""
    if forecast.loss is None:
        return "Nothing is known of the loss."
    return (
        f"The loss is of hidden tokens of held-out text, in nats; without context {forecast.loss.entropy:.2f} is the "
        "best. It follows finished runs by tokens read, since a few minutes of training do not tell it."
    )


def next_commands(config: str, overrides: Sequence[str], trial: Trial) -> list[str]:
    """Return the commands to go on with: the run, and its plan for another machine."""
    words = [f"--config {shlex.quote(config)}", *map(shlex.quote, overrides)]
    pace = f"{trial.measures.training.pace.likely:.0f}"
    return [
        f"kexue pipeline {' '.join(words)}",
        f"kexue plan {' '.join(words)} --tokens-per-second {pace}",
        f"kexue report {shlex.quote(str(trial.plan.folder.root))} --open",
    ]


def forecast_values(
    trial: Trial, forecast: Forecast, doubts: Sequence[str], price: float | None, commands: Sequence[str]
) -> dict[str, Any]:
    """Return the same as plain values: bytes, seconds, nats; null for what is not known."""
    loss, seconds = forecast.loss, forecast.of(lambda plan: plan.seconds)
    cost = [price * value / _HOUR for value in seconds] if price is not None and seconds else None
    return {
        "trial": {
            "folder": str(trial.plan.folder.root),
            "seconds": trial.seconds,
            "text_bytes": trial.measures.text_bytes,
            "share": trial.plan.size.share,
            "steps": trial.measures.training.steps,
            "tokens_per_second": asdict(trial.measures.training.pace),
            "stages": {name: asdict(stage) for name, stage in trial.measures.stages.items()},
            "sample": _sample_values(trial),
        },
        "forecast": {bound: plan_values(getattr(forecast, bound)) for bound in BOUNDS},
        "loss": asdict(loss) if loss else None,
        "tokens": forecast.tokens,
        "passes": forecast.passes,
        "cost": dict(zip(BOUNDS, cost, strict=True)) if cost else None,
        "doubts": list(doubts),
        "next": list(commands),
    }


def _sample_values(trial: Trial) -> dict[str, Any] | None:
    if trial.drawn is None:
        return None
    drawn = trial.drawn
    names = ("documents", "text_bytes", "blank", "repeated", "num_sources", "begun_sources")
    counts = {"rejected": dict(drawn.rejected), "left_out": dict(drawn.left_out)}
    return {name: getattr(drawn, name) for name in names} | counts


def _rows(forecast: Forecast, price: float | None) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for name in forecast.likely.stages:
        yield name, _texts(forecast.of(lambda plan, name=name: plan.stages[name].seconds), format_seconds)  # type: ignore[misc]
    seconds = forecast.of(lambda plan: plan.seconds)
    yield "all, time", _texts(seconds, format_seconds)
    if price is not None:
        yield "all, cost", _texts(seconds, lambda value: f"{price * value / _HOUR:,.2f}")
    figures: dict[str, Callable[[RunPlan], float | None]] = {
        "disk": lambda plan: plan.disk_bytes,
        "disk, peak": lambda plan: plan.peak_disk_bytes,
        "memory": lambda plan: plan.memory_bytes,
    }
    for title, take in figures.items():
        yield title, _texts(forecast.of(take), format_size)
    if loss := forecast.loss:
        yield "loss", _texts((loss.least, loss.likely, loss.most), lambda value: f"{value:.2f}")


def _texts(values: tuple[float, float, float] | None, show: Callable[[float], str]) -> tuple[str, str, str]:
    return (show(values[0]), show(values[1]), show(values[2])) if values else (_UNKNOWN,) * 3
