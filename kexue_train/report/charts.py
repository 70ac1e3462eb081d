"""Line charts and bars as plain geometry, which the page draws without a library and at any width.

A chart's paths lie in a square of 1000 × 1000 that the page stretches to the room it has; its labels are text of the
page, placed at percents, so that they never stretch. Pure functions, no files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from kexue_train.metrics.fields import Form, write_value

Point = tuple[float, float]
Mark = Literal["line", "dots", "level"]

_SIDE = 1000.0
_BUCKETS = 300
_TABLE_ROWS = 12
_MIN_LABEL_DISTANCE = 25.0  # percent of the width that the label of an event takes
COLOURS = 6
"""Colours of series that the page has, numbered from 1; they also differ in their dashes."""

_UNITS = ((" G", 1e9), (" M", 1e6), (" k", 1e3))
_SMALL = 1e-2
_EQUAL = 1e-6
_SMALLEST_RANGE = 1e-200
_NICE_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Tick:
    """A label at ``place`` percent of an axis, from the left or from below."""

    place: float
    label: str


@dataclass(frozen=True)
class Series:
    """One curve: finite points by rising x; ``dots`` marks each, ``level`` is a horizontal line to compare with."""

    label: str
    points: Sequence[Point]
    colour: int = 1
    mark: Mark = "line"


@dataclass(frozen=True)
class Curve:
    """A series as it is drawn."""

    label: str
    colour: int
    mark: str
    line: str
    """``d`` of an SVG path."""
    dots: str
    """The same for the dots, which are lines without length; may be empty."""


@dataclass(frozen=True)
class LineChart:
    """Everything the page needs to draw one figure."""

    name: str
    """Identifier in the page."""
    title: str
    description: str
    """What the figure shows, in words and numbers, for those who do not see it."""
    curves: list[Curve]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    events: list[Tick]
    """Vertical lines; those too close to the one before have no label."""
    values: str
    """JSON for reading single points off."""
    table: list[list[str]]
    """Header and rows of a few points of every series."""
    x_label: str
    wide: bool

    @property
    def label_width(self) -> int:
        """Characters of the longest label of the vertical axis."""
        return max((len(tick.label) for tick in self.y_ticks), default=1)


@dataclass(frozen=True)
class Bar:
    """One bar: its share of the longest, 0 to 1, and what is written beside it."""

    label: str
    share: float
    text: str


@dataclass(frozen=True)
class BarChart:
    """Horizontal bars with their values, which is a table with pictures."""

    title: str
    bars: list[Bar]
    colour: int = 1
    notes: list[str] = field(default_factory=list)

    @property
    def text_width(self) -> int:
        """Characters of the longest value."""
        return max(len(bar.text) for bar in self.bars)


def line_chart(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    form: Form = "plain",
    from_zero: bool = False,
    events: Sequence[tuple[float, str]] = (),
    x_label: str = "step",
    wide: bool = False,
) -> LineChart | None:
    """Draw ``series``; None if there is no point to draw.

    Args:
        name: Identifier in the page.
        title: Heading.
        series: Curves; empty ones are left out.
        form: How values are written.
        from_zero: Start the vertical axis at zero.
        events: (x, label) of what happened on the way.
        x_label: What the horizontal axis counts.
        wide: Over the whole width of the page.
    """
    drawn = [Series(s.label, thin(s.points), s.colour, s.mark) for s in series if s.points]
    moving = [s for s in drawn if s.mark != "level"]
    if not moving:
        return None
    xs, ys = ([point[axis] for s in drawn for point in s.points] for axis in (0, 1))
    left, right = min(xs), max(xs)
    low, high = _room_for(min(0.0, *ys) if from_zero else min(ys), max(ys), fixed_low=from_zero)

    def place(point: Point) -> str:
        return f"{_SIDE * _share_of(point[0], left, right):.1f} {_SIDE * (1 - _share_of(point[1], low, high)):.1f}"

    curves = [_curve(s, [place(point) for point in s.points]) for s in drawn]
    inside = sorted((x, label) for x, label in events if left <= x <= right)
    return LineChart(
        name=name,
        title=title,
        description=_describe(title, drawn, form, x_label, inside),
        curves=curves,
        x_ticks=_ticks_of(left, right, 6, "plain"),
        y_ticks=_ticks_of(low, high, 5, form),
        events=_label_events([Tick(100 * _share_of(x, left, right), label) for x, label in inside]),
        values=_values_json(drawn, form, x_label, (left, right), (low, high)),
        table=_table(moving, form, x_label),
        x_label=x_label,
        wide=wide,
    )


def bar_chart(
    title: str,
    rows: Sequence[tuple[str, float]],
    write: Callable[[float], str],
    *,
    colour: int = 1,
    notes: Sequence[str] = (),
) -> BarChart:
    """Make bars for ``rows`` of (label, value ≥ 0), each with its value as ``write`` puts it."""
    longest = max((value for _, value in rows), default=0.0) or 1.0
    return BarChart(title, [Bar(label, value / longest, write(value)) for label, value in rows], colour, list(notes))


def thin(points: Sequence[Point]) -> list[Point]:
    """Keep at most some 600 points: lowest and highest of each stretch, so that no spike is lost, and both ends."""
    if len(points) <= 2 * _BUCKETS:
        return list(points)
    size = len(points) / _BUCKETS
    kept = {0, len(points) - 1}
    for index in range(_BUCKETS):
        stretch = range(round(index * size), round((index + 1) * size))
        kept |= {min(stretch, key=lambda i: points[i][1]), max(stretch, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def _curve(series: Series, places: list[str]) -> Curve:
    line = f"M{' '.join(places)}" if len(places) > 1 else ""
    dotted = series.mark == "dots" or len(places) == 1
    return Curve(series.label, series.colour, series.mark, line, "".join(f"M{p}h0" for p in places) if dotted else "")


def _label_events(events: list[Tick]) -> list[Tick]:
    """Leave only the first of each crowd its label."""
    kept: list[Tick] = []
    last = -math.inf
    for event in events:
        shown = event.place - last >= _MIN_LABEL_DISTANCE
        last = event.place if shown else last
        kept.append(event if shown else Tick(event.place, ""))
    return kept


def _describe(title: str, drawn: list[Series], form: Form, x_label: str, events: list[tuple[float, str]]) -> str:
    parts = []
    for series in drawn:
        (x0, y0), (x1, y1) = series.points[0], series.points[-1]
        if series.mark == "level":
            parts.append(f"{series.label}: {write_value(y0, form)}")
        else:
            start, end = (f"{write_value(y, form)} at {x_label} {x:,.6g}" for x, y in ((x0, y0), (x1, y1)))
            parts.append(f"{series.label} from {start} to {end}")
    parts += [f"{label} at {x_label} {x:,.6g}" for x, label in events]
    return f"{title}: {'; '.join(parts)}."


def _values_json(drawn: list[Series], form: Form, x_label: str, across: Point, up: Point) -> str:
    """Write the points with five digits, safe inside a script element."""
    series = [
        {
            "label": s.label,
            "colour": s.colour,
            "level": s.mark == "level",
            "x": [float(f"{x:.7g}") for x, _ in s.points],
            "y": [float(f"{y:.5g}") for _, y in s.points],
        }
        for s in drawn
    ]
    chart = {"form": form, "xLabel": x_label, "across": across, "up": up, "series": series}
    return json.dumps(chart, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _table(moving: list[Series], form: Form, x_label: str) -> list[list[str]]:
    """List a dozen points of the curve with the fewest points, and the others at the same places."""
    fewest = min(moving, key=lambda s: len(s.points))
    places = [x for x, _ in fewest.points]
    stride = -(-len(places) // _TABLE_ROWS)
    places = places[(len(places) - 1) % stride :: stride]
    rows = [[f"{x:,.6g}", *(_value_at(s, x, form) for s in moving)] for x in places]
    return [[x_label, *(s.label for s in moving)], *rows]


def _value_at(series: Series, x: float, form: Form) -> str:
    """Write the value at ``x``, between two points on the line through them; a dash outside."""
    if len(series.points) == 1 and series.points[0][0] == x:
        return write_value(series.points[0][1], form)
    for (x0, y0), (x1, y1) in pairwise(series.points):
        if x0 <= x <= x1:
            share = (x - x0) / (x1 - x0) if x1 > x0 else 1.0
            return write_value(y0 + share * (y1 - y0), form)
    return "–"


def _share_of(value: float, low: float, high: float) -> float:
    """Return where ``value`` lies between ``low`` (0) and ``high`` (1); in the middle if they are equal."""
    return (value - low) / (high - low) if high > low else 0.5


def _room_for(low: float, high: float, *, fixed_low: bool) -> tuple[float, float]:
    """Return the range with a little air around it; never empty."""
    moves = high - low > _EQUAL * max(abs(low), abs(high))
    air = 0.05 * (high - low) if moves else 0.05 * abs(high) or 1.0
    return (low if fixed_low else low - air, high + air)


def _ticks_of(low: float, high: float, number: int, form: Form) -> list[Tick]:
    """Return at most about ``number`` round values inside the range."""
    if high - low < _SMALLEST_RANGE:
        return [Tick(50.0, _write_tick(low, abs(low) or 1.0, form, ("", 1.0)))]
    rough = (high - low) / number
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * size for nice in _NICE_STEPS if nice * size >= 0.8 * rough)
    unit = _unit(max(abs(low), abs(high)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [
        Tick(100 * _share_of(i * step, low, high), _write_tick(i * step, step, form, unit))
        for i in range(first, last + 1)
    ]


def _write_tick(value: float, step: float, form: Form, unit: tuple[str, float]) -> str:
    if form == "share":
        return f"{100 * value:.{_decimals(100 * step)}f}%"
    name, size = unit
    return f"{value / size:,.{_decimals(step / size)}f}{name}" if value else "0"


def _unit(largest: float) -> tuple[str, float]:
    """Choose the unit of all labels of an axis: thousands and the like, or a small power of ten as in config files."""
    if largest < _SMALL:
        exponent = math.floor(math.log10(largest))
        return f"e{exponent}", 10.0**exponent
    return next(((name, size) for name, size in _UNITS if largest >= 10 * size), ("", 1.0))


def _decimals(step: float) -> int:
    """Return the number of decimals that tell multiples of ``step`` apart."""
    return next((digits for digits in range(7) if abs(step * 10**digits - round(step * 10**digits)) < 1e-6), 7)
