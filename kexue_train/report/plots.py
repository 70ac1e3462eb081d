"""Which charts the page of a run has: pure functions from what was read of it."""

from __future__ import annotations

import math

from kexue_train.foundation.runtime import format_seconds
from kexue_train.report.axes import Form
from kexue_train.report.charts import BarChart, LineChart, Point, Series, bar_chart, line_chart
from kexue_train.report.run_data import Record, RunData
from kexue_train.report.training import training_shares


def learning_charts(run: RunData) -> list[LineChart]:
    """Losses, accuracies and learning rate over the steps; empty before the first line of metrics."""
    baselines = run.mlm.get("baselines") or {}
    entropy = baselines.get("unigram_entropy") or run.training_entropy
    charts = [
        _chart(
            run,
            "mlm-loss",
            "Loss on masked tokens (nats)",
            "mlm_loss",
            level=("best without context", entropy),
            wide=True,
        ),
        _chart(run, "mlm-accuracy", "Accuracy on masked tokens", "mlm_accuracy", form="percent"),
    ]
    if any(record.get("nsp_accuracy") is not None for record in run.of_kind("train", "validation")):
        guess = ("guessing", baselines.get("nsp_majority") or 0.5)
        charts += [
            _chart(run, "nsp-accuracy", "Accuracy on next sentences", "nsp_accuracy", form="percent", level=guess),
            _chart(run, "nsp-loss", "Loss on next sentences (nats)", "nsp_loss", level=("guessing", math.log(2))),
        ]
    charts.append(_chart(run, "learning-rate", "Learning rate", "lr", from_zero=True))
    return [chart for chart in charts if chart]


def speed_charts(run: RunData) -> list[LineChart]:
    """Throughput, MFU and memory over the steps, as far as the metrics tell."""
    charts = [
        _chart(run, "throughput", "Real tokens per second", "tokens_per_second", from_zero=True),
        _chart(run, "mfu", "MFU against the measured rate of the devices", "mfu", form="percent", from_zero=True),
        _chart(
            run, "data-wait", "Share of the time spent waiting for data", "data_wait", form="percent", from_zero=True
        ),
    ]
    return [chart for chart in charts if chart]


def monitor_charts(run: RunData) -> list[LineChart]:
    """Sizes of the word table over the steps, where drift shows."""
    lines = run.curve("train")
    names = {
        "embedding_rms_median": "median row",
        "embedding_rms_max": "largest row",
        "embedding_rms_rare": "rarer half",
    }
    series = [Series(label, points_of(lines, key), i) for i, (key, label) in enumerate(names.items(), 1)]
    charts = [
        line_chart("embedding-rms", "Root mean square of the rows of the word table", series, from_zero=True),
        _chart(run, "embedding-max", "Largest value in the word table", "embedding_max", from_zero=True),
    ]
    return [chart for chart in charts if chart]


def time_bars(run: RunData) -> list[BarChart]:
    """Seconds of every finished stage, and on what the time of training went."""
    times = [(str(r["stage"]), float(r.get("seconds") or 0.0)) for r in run.stages]
    shares = training_shares(run)
    whole = sum(seconds for _, seconds in shares) or 1.0
    charts = [
        bar_chart("Time of each stage", times, format_seconds),
        bar_chart("Time within training", shares, lambda s: f"{format_seconds(s)} · {s / whole:.1%}", colour=2),
    ]
    return [chart for chart in charts if chart.bars]


def data_bars(run: RunData) -> list[BarChart]:
    """Where the documents come from, and the lengths of words in tokens."""
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
    """Accuracy by how frequent the token is in training; empty before the evaluation."""
    bands = [band for band in run.mlm.get("frequency_bands") or [] if band.get("predictions")]
    if not bands:
        return []
    rows = [(f"{band['tokens']:,} tokens", float(band["mlm_accuracy"])) for band in bands]
    rows[0] = (f"most frequent: {rows[0][0]}", rows[0][1])
    rows[-1] = (f"rarest: {rows[-1][0]}", rows[-1][1])
    notes = ["Each group is a quarter of the training text."]
    return [bar_chart("Predicted tokens found, by frequency", rows, lambda s: f"{s:.1%}", colour=2, notes=notes)]


def points_of(records: list[Record], key: str, x: str = "step") -> list[Point]:
    """(x, value) of the records that have both, finite."""
    pairs = [
        (r[x], r[key]) for r in records if isinstance(r.get(x), int | float) and isinstance(r.get(key), int | float)
    ]
    return [(float(place), float(value)) for place, value in pairs if math.isfinite(place) and math.isfinite(value)]


def _chart(
    run: RunData,
    name: str,
    title: str,
    key: str,
    *,
    form: Form = "number",
    from_zero: bool = False,
    level: tuple[str, float | None] | None = None,
    wide: bool = False,
) -> LineChart | None:
    """``key`` in training and validation, with what happened on the way."""
    train, validation = (points_of(run.curve(kind), key) for kind in ("train", "validation"))
    series = [Series("training", train, 1), Series("validation", validation, 2, "dots")]
    ends = [point[0] for point in (*train[:1], *train[-1:], *validation[:1], *validation[-1:])]
    if level and level[1] is not None and ends:
        series.append(Series(level[0], [(min(ends), level[1]), (max(ends), level[1])], mark="level"))
    return line_chart(name, title, series, form=form, from_zero=from_zero, events=_events(run), wide=wide)


def _events(run: RunData) -> list[tuple[float, str]]:
    rolled_back = {r.get("step") for r in run.of_kind("rollback")}
    names = {"resume": "resumed", "phase": "phase", "rollback": "went back"}
    records = [
        r for r in run.of_kind(*names) if "step" in r and not (r["kind"] == "resume" and r["step"] in rolled_back)
    ]
    return [
        (float(r["step"]), f"phase {r['phase']}" if r["kind"] == "phase" and "phase" in r else names[r["kind"]])
        for r in records
    ]
