"""Several runs side by side: curves on one chart, the settings that differ, and the results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kexue_train.downstream.results.result import Score
from kexue_train.foundation.runtime import format_seconds
from kexue_train.metrics.fields import (
    EMPTY,
    LEARNING_RATE,
    SECONDS,
    STEP,
    TOKENS,
    TOKENS_PER_SECOND,
    Kind,
    Metric,
    Record,
    head_metrics,
    short_number,
)
from kexue_train.metrics.heads import HEADS
from kexue_train.report.charts import COLOURS, LineChart, Mark, Series, line_chart
from kexue_train.report.plots import points_of
from kexue_train.report.results import scores_of
from kexue_train.report.run_data import RunData
from kexue_train.report.summary import summarise_run, total_seconds
from kexue_train.report.tables import Table
from kexue_train.report.training import phase_speeds

_HOURS = Metric("hours", "hours")


@dataclass(frozen=True)
class Cell:
    """One result; ``is_best`` if no other run's is better."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class ResultRow:
    """One score of all runs."""

    name: str
    cells: list[Cell]


def labels_of(runs: list[RunData]) -> list[str]:
    """Return the runs' names, with the part of their folders that differs where names are equal."""
    number = Counter(run.name for run in runs)
    folders = [run.folder.resolve() for run in runs]
    common = os.path.commonpath(folders)
    return [
        run.name if number[run.name] == 1 else f"{run.name} ({folder.relative_to(common)})"
        for run, folder in zip(runs, folders, strict=True)
    ]


def overview_table(runs: list[RunData], labels: list[str]) -> Table:
    """Return a table of what each run is and how far it has come."""
    rows = []
    for run, label in zip(runs, labels, strict=True):
        summary, last = summarise_run(run), next(reversed(run.curve(Kind.TRAIN)), {})
        speeds = [speed.tokens_per_second for speed in phase_speeds(run) if speed.tokens_per_second]
        rows.append(
            [
                label,
                summary.state,
                short_number(summary.parameters) if summary.parameters else EMPTY,
                STEP.text(last),
                TOKENS.text(last),
                TOKENS_PER_SECOND.write(speeds[-1]) if speeds else EMPTY,
                format_seconds(total_seconds(run)),
            ]
        )
    header = ["", "State", "Parameters", "Steps", "Tokens read", "Tokens/s", "Time of all stages"]
    return Table("The runs", header, rows, wide=True)


def result_rows(runs: list[RunData]) -> list[ResultRow]:
    """Return every score that some run has, in the order of the first run that has it."""
    scores = [{(s.group, s.name): s for s in scores_of(run)} for run in runs]
    keys = dict.fromkeys(key for own in scores for key in own)
    return [
        ResultRow(f"{group}: {metric}", _cells([own.get((group, metric)) for own in scores])) for group, metric in keys
    ]


def differing_settings(runs: list[RunData], labels: list[str]) -> Table | None:
    """Return a row per setting that differs between runs; None if no setting does."""
    flat = [dict(_flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for own in flat for key in own)
    rows = [[key, *(_write(own, key) for own in flat)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return Table("Settings that differ", ["", *labels], differing, numeric=False, wide=True) if differing else None


def overlaid_charts(runs: list[RunData], labels: list[str]) -> list[LineChart]:
    """Draw the curves of all runs, over steps, tokens and time."""
    loss, _ = head_metrics(HEADS[0])
    figures = [
        ("validation-loss", loss, Kind.VALIDATION, STEP, " in validation"),
        ("loss-by-tokens", loss, Kind.VALIDATION, TOKENS, " in validation, by tokens read"),
        ("loss-by-time", loss, Kind.VALIDATION, _HOURS, " in validation, by hours of training"),
        ("training-loss", loss, Kind.TRAIN, STEP, " in training"),
        *((f"{head.name}-accuracy", head_metrics(head)[1], Kind.VALIDATION, STEP, " in validation") for head in HEADS),
        ("learning-rate", LEARNING_RATE, Kind.TRAIN, STEP, ""),
        ("throughput", TOKENS_PER_SECOND, Kind.TRAIN, STEP, ""),
    ]
    charts = [_overlay(runs, labels, *figure) for figure in figures]
    return [chart for chart in charts if chart]


def _overlay(
    runs: list[RunData], labels: list[str], name: str, metric: Metric, kind: Kind, x: Metric, title: str
) -> LineChart | None:
    """Draw the curves of a metric; the title is that of its chart in a run's page and ``title``."""
    assert metric.chart
    mark: Mark = "dots" if kind == Kind.VALIDATION else "line"
    series = [
        Series(label, points_of(_with_progress(run, kind), metric, x), 1 + number % COLOURS, mark)
        for number, (run, label) in enumerate(zip(runs, labels, strict=True))
    ]
    return line_chart(
        name,
        metric.chart.title + title,
        series,
        form=metric.form,
        from_zero=metric.chart.from_zero,
        x_label=x.key,
        wide=name == "validation-loss",
    )


def _with_progress(run: RunData, kind: Kind) -> list[Record]:
    """Return the records of ``kind`` with the tokens and hours of the training line of their step."""
    lines = {record["step"]: record for record in run.curve(Kind.TRAIN)}
    found = []
    for record in run.curve(kind):
        line = lines.get(record["step"], {})
        seconds = SECONDS.of(line)
        hours = {} if seconds is None else {_HOURS.key: seconds / 3600}
        found.append({TOKENS.key: TOKENS.of(line)} | hours | record)
    return found


def _cells(scores: list[Score | None]) -> list[Cell]:
    values = [score.value for score in scores if score]
    if len(values) < 2:
        return [Cell(score.text if score else EMPTY) for score in scores]
    upwards = next(score.higher_is_better for score in scores if score)
    best = max(values) if upwards else min(values)
    return [Cell(s.text, is_best=s.value == best and len(set(values)) > 1) if s else Cell(EMPTY) for s in scores]


def _flatten(values: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        elif f"{prefix}{key}" != "name":
            yield f"{prefix}{key}", value


def _write(settings: Record, key: str) -> str:
    if key not in settings:
        return "not there"
    value = settings[key]
    return {True: "yes", False: "no", None: "none"}[value] if isinstance(value, bool) or value is None else str(value)
