"""Which figures the page of a run has: pure functions from what was read of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kexue_train.foundation.runtime import format_seconds
from kexue_train.metrics.fields import PHASE, STEP, Chart, Kind, Metric, Record, training_metrics
from kexue_train.metrics.heads import HEADS
from kexue_train.report.charts import BarChart, LineChart, Point, Series, bar_chart, line_chart
from kexue_train.report.run_data import RunData
from kexue_train.report.sources import source_chart
from kexue_train.report.training import training_shares


def training_charts(run: RunData) -> dict[str, list[LineChart]]:
    """Return the figures that metrics name, by the section of the page; a metric that was never written has none."""
    metrics: dict[Chart, list[Metric]] = {}
    for metric in training_metrics():
        if metric.chart:
            metrics.setdefault(metric.chart, []).append(metric)
    found: dict[str, list[LineChart]] = {chart.section: [] for chart in metrics}
    for chart, members in metrics.items():
        if drawn := _draw(run, chart, members):
            found[chart.section].append(drawn)
    if drawn := source_chart(run):
        found["learning"].append(drawn)
    return found


def _draw(run: RunData, chart: Chart, metrics: Sequence[Metric]) -> LineChart | None:
    """Draw one metric in training and validation, or several in training, with what happened on the way."""
    train, first = run.curve(Kind.TRAIN), metrics[0]
    if len(metrics) > 1:
        series = [Series(metric.label, points_of(train, metric), i) for i, metric in enumerate(metrics, 1)]
    else:
        validation = points_of(run.curve(Kind.VALIDATION), first)
        series = [Series("training", points_of(train, first), 1), Series("validation", validation, 2, "dots")]
    ends = [point[0] for curve in series for point in curve.points]
    if (level := _level(run, first)) and ends:
        label, height = level
        series.append(Series(label, [(min(ends), height), (max(ends), height)], mark="level"))
    return line_chart(
        chart.name,
        chart.title,
        series,
        form=first.form,
        from_zero=chart.from_zero,
        events=_events(run),
        wide=chart.wide,
    )


def _level(run: RunData, metric: Metric) -> tuple[str, float] | None:
    """Return what the scores of a head are compared with: the loss or accuracy of guessing."""
    baselines = run.mlm.get("baselines") or {}
    for head in HEADS:
        if metric.key == head.accuracy_key and head.guessing_accuracy:
            return "guessing", baselines.get(f"{head.name}_majority") or head.guessing_accuracy
        if metric.key == head.loss_key and head.guessing_loss:
            return "guessing", head.guessing_loss
        if metric.key == head.loss_key and (entropy := baselines.get("unigram_entropy") or run.training_entropy):
            return "best without context", entropy
    return None


def _events(run: RunData) -> list[tuple[float, str]]:
    rolled_back = {record["step"] for record in run.of_kind(Kind.ROLLBACK)}
    labels = {Kind.RESUME: "resumed", Kind.ROLLBACK: "rolled back"}
    return [
        (float(record["step"]), labels.get(record["kind"], f"phase {PHASE.text(record)}"))
        for record in run.of_kind(Kind.RESUME, Kind.PHASE, Kind.ROLLBACK)
        if not (record["kind"] == Kind.RESUME and record["step"] in rolled_back)
    ]


def time_bars(run: RunData) -> list[BarChart]:
    """Draw the seconds of every finished stage, and where the time of training went."""
    times = [(str(r["stage"]), float(r.get("seconds") or 0.0)) for r in run.stages]
    shares = training_shares(run)
    whole = sum(seconds for _, seconds in shares) or 1.0
    charts = [
        bar_chart("Time of each stage", times, format_seconds),
        bar_chart("Time within training", shares, lambda s: f"{format_seconds(s)} · {s / whole:.1%}", colour=2),
    ]
    return [chart for chart in charts if chart.bars]


def data_bars(run: RunData) -> list[BarChart]:
    """Draw where the documents come from, and the lengths of words in tokens."""
    corpus, samples = (run.manifests[n].statistics if n in run.manifests else {} for n in ("corpus", "samples"))
    sources = sorted((corpus.get("documents_by_source") or {}).items(), key=lambda item: -item[1])
    lengths = [
        (f"{name} token{'' if name == '1' else 's'}", n) for name, n in (samples.get("word_lengths") or {}).items()
    ]
    words = sum(number for _, number in lengths) or 1
    charts = [
        bar_chart("Documents by source", sources, lambda number: f"{number:,.0f}"),
        bar_chart(f"Words by length ({words:,} words)", lengths, lambda n: f"{n / words:.2%}", colour=3),
    ]
    return [chart for chart in charts if chart.bars]


def band_bars(run: RunData) -> list[BarChart]:
    """Draw the accuracy by the token's frequency in training; empty before the evaluation."""
    words = HEADS[0]
    bands = [band for band in run.mlm.get("frequency_bands") or [] if band.get(words.counted)]
    if not bands:
        return []
    rows = [(f"{band['tokens']:,} tokens", float(band[words.accuracy_key])) for band in bands]
    rows[0] = (f"most frequent: {rows[0][0]}", rows[0][1])
    rows[-1] = (f"rarest: {rows[-1][0]}", rows[-1][1])
    notes = ["Each group is a quarter of the training text."]
    return [bar_chart("Predicted tokens found, by frequency", rows, lambda s: f"{s:.1%}", colour=2, notes=notes)]


def points_of(records: list[Record], metric: Metric, x: Metric = STEP) -> list[Point]:
    """Return (x, value) of the records that have both, finite."""
    pairs = [(x.of(record), metric.of(record)) for record in records]
    return [
        (float(across), float(value))
        for across, value in pairs
        if across is not None and value is not None and math.isfinite(across) and math.isfinite(value)
    ]
