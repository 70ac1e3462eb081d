"""One small SVG for a claim: bars or curves with a dot for each seed, in colours for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from claims.claim import Bars, Claim, Found, Lines, at
from claims.verdict import Spread

WIDTH, LEFT, RIGHT, TOP, ROW, PLOT = 720, 270, 110, 58, 30, 240
_COLOURS = ("#2e75d6", "#c2571a", "#2f8f5b", "#8a4fc4", "#b08600", "#c43d6b")
_STYLE = """<style>
svg { font-family: system-ui, sans-serif; font-size: 13px; }
.paper { fill: #ffffff; } .text { fill: #1d2939; } .faint { fill: #667085; } .axis { stroke: #98a2b3; }
.dot { fill: #1d2939; } .bar { fill: #7aa7e6; }
@media (prefers-color-scheme: dark) {
.paper { fill: #0d1117; } .text { fill: #e6edf3; } .faint { fill: #9aa4b2; } .axis { stroke: #566072; }
.dot { fill: #e6edf3; } .bar { fill: #2f5c99; }
}
</style>"""


def draw(claim: Claim, found: Found) -> str:
    """Return the picture of ``claim`` as SVG.

    Raises:
        KeyError: If a figure that the picture shows was not measured.
    """
    picture = claim.picture
    body, height = _bars(picture, found) if isinstance(picture, Bars) else _lines(picture, found)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(claim.sentence, quote=True)}">'
    )
    paper = f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>'
    title = _text(16, 24, f"{claim.name}: {picture.label}", "text")
    return "\n".join([head, _STYLE, paper, title, *body, "</svg>", ""])


def _bars(picture: Bars, found: Found) -> tuple[list[str], int]:
    values = [value for name in picture.figures for value in found[name]]
    low, high = _range([*values, *([] if picture.mark is None else [picture.mark])], log=picture.log, from_zero=True)
    place = _placer(low, high, LEFT, WIDTH - RIGHT, log=picture.log)
    base = place(low if picture.log else 0.0)
    parts = []
    for number, name in enumerate(picture.figures):
        middle, spread = TOP + number * ROW, Spread.of(found[name])
        end = place(spread.mean)
        left, width = min(base, end), max(abs(end - base), 1.0)
        parts += [
            _text(LEFT - 10, middle + 4, name, "text", anchor="end"),
            f'<rect class="bar" x="{left:.1f}" y="{middle - 9}" width="{width:.1f}" height="18" rx="2"/>',
            *(_dot(place(value), middle) for value in found[name]),
            _text(max(place(max(found[name])), base) + 9, middle + 4, f"{spread.mean:.3g}", "faint"),
        ]
    bottom = TOP + len(picture.figures) * ROW - 12
    parts.append(f'<path class="axis" d="M{base:.1f} {TOP - 16}V{bottom}"/>')
    if picture.mark is not None:
        x = place(picture.mark)
        parts.append(f'<path class="axis" stroke-dasharray="4 3" d="M{x:.1f} {TOP - 16}V{bottom}"/>')
        parts.append(_text(x, bottom + 14, f"{picture.mark:g}", "faint", anchor="middle"))
    return parts, bottom + 24


def _lines(picture: Lines, found: Found) -> tuple[list[str], int]:
    values = [value for series in picture.series for x in picture.xs for value in found[at(series, x)]]
    low, high = _range(values, log=picture.log)
    left, right, top, bottom = 64, WIDTH - 220, 44, 44 + PLOT
    up = _placer(low, high, bottom, top, log=picture.log)
    across = [left + 20 + (right - left - 40) * i / max(len(picture.xs) - 1, 1) for i in range(len(picture.xs))]
    parts = [f'<path class="axis" fill="none" d="M{left} {top}V{bottom}H{right}"/>']
    for tick in _ticks(low, high, log=picture.log):
        parts.append(_text(left - 8, up(tick) + 4, f"{tick:.3g}", "faint", anchor="end"))
    for x, value in zip(across, picture.xs, strict=True):
        parts.append(_text(x, bottom + 18, f"{value:g}", "faint", anchor="middle"))
    parts.append(_text((left + right) / 2, bottom + 36, picture.x_label, "faint", anchor="middle"))
    ends = []
    for number, series in enumerate(picture.series):
        colour = _COLOURS[number % len(_COLOURS)]
        spreads = [Spread.of(found[at(series, x)]) for x in picture.xs]
        points = [f"{x:.1f},{up(spread.mean):.1f}" for x, spread in zip(across, spreads, strict=True)]
        dash = ("", ' stroke-dasharray="7 4"', ' stroke-dasharray="2 3"')[number % 3]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{" ".join(points)}"/>')
        for x, name in zip(across, picture.xs, strict=True):
            parts += [_dot(x, up(value), colour) for value in found[at(series, name)]]
        ends.append((up(spreads[-1].mean), series, colour))
    parts += _labels_at_ends(ends, right - 6)
    return parts, bottom + 48


def _labels_at_ends(ends: Sequence[tuple[float, str, str]], x: float) -> list[str]:
    """Return the names of curves beside their ends, from the top down and never one over another."""
    parts, free = [], -math.inf
    for y, name, colour in sorted(ends):
        free = max(y + 4, free + 16)
        parts.append(f'<text x="{x:.1f}" y="{free:.1f}" fill="{colour}">{escape(name)}</text>')
    return parts


def _range(values: Sequence[float], *, log: bool, from_zero: bool = False) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        return (low / 2, high) if from_zero else (low, high if high > low else 2 * low)
    if from_zero:
        return min(low, 0.0), max(high, 0.0) or 1.0
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _placer(low: float, high: float, start: float, end: float, *, log: bool) -> Callable[[float], float]:
    """Return where values from ``low`` to ``high`` lie between the pixels ``start`` and ``end``."""

    def scale(value: float) -> float:
        return math.log(value) if log else value

    def place(value: float) -> float:
        return start + (end - start) * (scale(value) - scale(low)) / ((scale(high) - scale(low)) or 1.0)

    return place


def _ticks(low: float, high: float, *, log: bool) -> list[float]:
    if log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        powers = [10.0**power for power in range(first, last + 1)]
        return powers if len(powers) > 1 else [low, *powers, high]
    raw = (high - low) / 4
    step = next(s for s in (1, 2, 5, 10) if s * 10 ** math.floor(math.log10(raw)) >= raw) * 10 ** math.floor(
        math.log10(raw)
    )
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _dot(x: float, y: float, colour: str = "") -> str:
    look = f'fill="{colour}"' if colour else 'class="dot"'
    return f'<circle {look} cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def _text(x: float, y: float, text: str, style: str, *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
