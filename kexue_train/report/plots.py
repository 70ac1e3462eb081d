"""Figures of a run: pure functions from metrics to Plotly figures, with the text that says the same to a screen reader.

Colours are mid-tones that read on white and on black; text and grid take their colours from the page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from kexue_train.report.run_data import Record, RunData
from kexue_train.runtime import format_seconds, format_size

_BLUE, _ORANGE, _TEAL, _GREY = "#4c8dd6", "#e08a3c", "#2ba08b", "#8a8f98"
_MAX_POINTS = 2000
Figure = Any  # plotly.graph_objects.Figure, which has no types


@dataclass(frozen=True)
class Plot:
    """One figure of the page."""

    name: str
    """Identifier in the page."""
    title: str
    description: str
    """What the figure shows, in words and numbers."""
    figure: Figure
    wide: bool = False


def learning_plots(run: RunData) -> list[Plot]:
    """Losses, accuracies, learning rate and throughput over the steps; empty before the first log line."""
    train, validation = run.curve("train"), run.curve("validation")
    if not train and not validation:
        return []
    entropy = (run.mlm.get("baselines") or {}).get("unigram_entropy") or run.training_entropy
    resumed = [int(record["step"]) for record in run.of_kind("resume") if "step" in record]
    plots = [
        plot_curves(
            "mlm-loss",
            "Masked-token loss (nats)",
            train,
            validation,
            "mlm_loss",
            line=("best without context", entropy),
            resumed=resumed,
            wide=True,
        ),
        plot_curves("mlm-accuracy", "Masked-token accuracy", train, validation, "mlm_accuracy", percent=True),
    ]
    if any(record.get("nsp_accuracy") is not None for record in (*train, *validation)):
        majority = (run.mlm.get("baselines") or {}).get("nsp_majority") or 0.5
        plots.append(
            plot_curves(
                "nsp-accuracy",
                "Next-sentence accuracy",
                train,
                validation,
                "nsp_accuracy",
                percent=True,
                line=("guessing", majority),
            )
        )
    plots.append(plot_curves("learning-rate", "Learning rate", train, [], "lr"))
    plots.append(
        plot_curves("throughput", "Throughput (real tokens per second)", train, [], "tokens_per_second", from_zero=True)
    )
    return [plot for plot in plots if plot.figure.data]


def plot_curves(
    name: str,
    title: str,
    train: list[Record],
    validation: list[Record],
    key: str,
    *,
    percent: bool = False,
    from_zero: bool = False,
    line: tuple[str, float | None] | None = None,
    resumed: list[int] | None = None,
    wide: bool = False,
) -> Plot:
    """``key`` over the steps, in training and validation.

    Args:
        name: Identifier in the page.
        title: Heading.
        train: Training records by rising step.
        validation: Validation records by rising step.
        key: Which value of the records.
        percent: The value is a share.
        from_zero: Start the axis at zero.
        line: Label and value of a level to compare with.
        resumed: Steps at which training was resumed.
        wide: Over the whole width of the page.
    """
    figure = _empty_figure()
    curves = {"training": (train, _BLUE, "lines"), "validation": (validation, _ORANGE, "lines+markers")}
    drawn: dict[str, tuple[list[int], list[float]]] = {}
    for label, (records, colour, mode) in curves.items():
        steps, values = _points(records, key)
        if steps:
            drawn[label] = (steps, values)
            style = {"color": colour, "width": 1.6 if mode == "lines" else 2.2}
            figure.add_scatter(x=steps, y=values, name=label, mode=mode, line=style, marker={"size": 5})
    if drawn and line and line[1] is not None:
        ends = [min(steps[0] for steps, _ in drawn.values()), max(steps[-1] for steps, _ in drawn.values())]
        dashed = {"color": _GREY, "width": 1.5, "dash": "dash"}
        figure.add_scatter(x=ends, y=[line[1]] * 2, name=line[0], mode="lines", line=dashed, hoverinfo="skip")
    for step in resumed or []:
        dotted = {"color": _TEAL, "width": 1.2, "dash": "dot"}
        figure.add_vline(x=step, line=dotted, annotation={"text": "resumed"}, annotation_position="top right")
    figure.update_layout(
        showlegend=len(figure.data) > 1, yaxis={"rangemode": "tozero"} if from_zero else {"exponentformat": "e"}
    )
    figure.update_yaxes(tickformat=".0%" if percent else None, hoverformat=".2%" if percent else ".4g")
    figure.update_xaxes(title={"text": "step", "standoff": 6})
    return Plot(name, title, _describe_curves(title, drawn, line, resumed or [], percent), figure, wide)


def stage_plots(run: RunData) -> list[Plot]:
    """Seconds and bytes of every finished stage as bars; empty if none has finished."""
    times = [(str(r["stage"]), float(r.get("seconds") or 0.0)) for r in run.stages]
    sizes = [(str(r["stage"]), float(r["bytes"])) for r in run.stages if r.get("bytes")]
    plots = []
    if times:
        plots.append(_plot_bars("stage-time", "Time per stage", times, format_seconds, _BLUE))
    if sizes:
        plots.append(_plot_bars("stage-bytes", "Bytes written per stage", sizes, format_size, _TEAL))
    return plots


def plot_bands(run: RunData) -> list[Plot]:
    """Accuracy by how frequent the token is in training; empty before the evaluation."""
    bands = [band for band in run.mlm.get("frequency_bands") or [] if band.get("predictions")]
    if not bands:
        return []
    rows = [(f"{band['tokens']:,} tokens", float(band["mlm_accuracy"])) for band in bands]
    rows[0] = (f"most frequent: {rows[0][0]}", rows[0][1])
    rows[-1] = (f"rarest: {rows[-1][0]}", rows[-1][1])
    title = "Hidden tokens found, by frequency (each group: a quarter of the text)"
    return [_plot_bars("bands", title, rows, lambda share: f"{share:.1%}", _ORANGE)]


def _plot_bars(name: str, title: str, rows: list[tuple[str, float]], form: Any, colour: str) -> Plot:
    figure = _empty_figure()
    labels, values = [label for label, _ in rows], [value for _, value in rows]
    figure.add_bar(
        x=values,
        y=labels,
        orientation="h",
        text=[form(value) for value in values],
        textposition="outside",
        cliponaxis=False,
        hoverinfo="skip",
        marker={"color": colour},
        width=0.62,
    )
    largest = max(values, default=0.0) or 1.0
    figure.update_xaxes(range=[0, largest * 1.28], showticklabels=False, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, tickmode="linear", dtick=1)
    figure.update_layout(height=70 + 30 * len(rows), showlegend=False, margin={"t": 8, "b": 8})
    return Plot(name, title, f"{title}: " + ", ".join(f"{label} {form(value)}" for label, value in rows) + ".", figure)


def _empty_figure() -> Figure:
    import plotly.graph_objects as go  # noqa: PLC0415  # takes a second; the summary and terminal do without

    figure = go.Figure()
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "inherit", "size": 12.5, "color": _GREY},
        margin={"l": 8, "r": 14, "t": 30, "b": 44},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
        hovermode="x unified",
        height=300,
    )
    axes = {"gridcolor": "rgba(138,143,152,0.25)", "zeroline": False, "automargin": True, "fixedrange": False}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes, nticks=6)
    return figure


def _points(records: list[Record], key: str) -> tuple[list[int], list[float]]:
    """Steps and finite values, at most ``_MAX_POINTS``, the last one always among them."""
    pairs = [(int(r["step"]), float(r[key])) for r in records if isinstance(r.get(key), int | float)]
    pairs = [pair for pair in pairs if math.isfinite(pair[1])]
    stride = -(-len(pairs) // _MAX_POINTS) or 1
    kept = pairs[(len(pairs) - 1) % stride :: stride]
    return [step for step, _ in kept], [value for _, value in kept]


def _describe_curves(
    title: str,
    drawn: dict[str, tuple[list[int], list[float]]],
    line: tuple[str, float | None] | None,
    resumed: list[int],
    percent: bool,
) -> str:
    def form(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:,.4g}"

    parts = [
        f"{label} from {form(values[0])} at step {steps[0]:,} to {form(values[-1])} at step {steps[-1]:,}"
        for label, (steps, values) in drawn.items()
    ]
    if line and line[1] is not None:
        parts.append(f"{line[0]}: {form(line[1])}")
    if resumed:
        parts.append(f"resumed at step {', '.join(f'{step:,}' for step in resumed)}")
    return f"{title}: " + "; ".join(parts) + "."
