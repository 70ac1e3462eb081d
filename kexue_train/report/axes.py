"""Axes of charts: their ranges and the round values along them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kexue_train.metrics.fields import Form

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


def share_of(value: float, low: float, high: float) -> float:
    """Where ``value`` lies between ``low`` (0) and ``high`` (1); in the middle if they are equal."""
    return (value - low) / (high - low) if high > low else 0.5


def room_for(low: float, high: float, *, fixed_low: bool) -> tuple[float, float]:
    """The range with a little air around it; never empty."""
    moves = high - low > _EQUAL * max(abs(low), abs(high))
    air = 0.05 * (high - low) if moves else 0.05 * abs(high) or 1.0
    return (low if fixed_low else low - air, high + air)


def ticks_of(low: float, high: float, number: int, form: Form) -> list[Tick]:
    """At most about ``number`` round values inside the range."""
    if high - low < _SMALLEST_RANGE:
        return [Tick(50.0, _write_tick(low, abs(low) or 1.0, form, ("", 1.0)))]
    rough = (high - low) / number
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * size for nice in _NICE_STEPS if nice * size >= 0.8 * rough)
    unit = _unit(max(abs(low), abs(high)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [
        Tick(100 * share_of(i * step, low, high), _write_tick(i * step, step, form, unit))
        for i in range(first, last + 1)
    ]


def _write_tick(value: float, step: float, form: Form, unit: tuple[str, float]) -> str:
    if form == "share":
        return f"{100 * value:.{_decimals(100 * step)}f}%"
    name, size = unit
    return f"{value / size:,.{_decimals(step / size)}f}{name}" if value else "0"


def _unit(largest: float) -> tuple[str, float]:
    """What all labels of an axis count in: thousands and the like, or a small power of ten as in config files."""
    if largest < _SMALL:
        exponent = math.floor(math.log10(largest))
        return f"e{exponent}", 10.0**exponent
    return next(((name, size) for name, size in _UNITS if largest >= 10 * size), ("", 1.0))


def _decimals(step: float) -> int:
    """Digits behind the point that tell multiples of ``step`` apart."""
    return next((digits for digits in range(7) if abs(step * 10**digits - round(step * 10**digits)) < 1e-6), 7)
