"""A claim: a sentence, where it is made, how it is measured, and what would confirm or refute it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from claims.verdict import Verdict

Figures = dict[str, float]
"""What one seed gives: figures by their names."""
Found = Mapping[str, Sequence[float]]
"""The same over all seeds, in the order of the seeds."""


@dataclass(frozen=True)
class Bars:
    """A picture: one bar for each of some figures, with a dot for each seed."""

    figures: tuple[str, ...]
    label: str
    """What the bars measure, with the unit."""
    log: bool = False
    """Whether lengths are logarithms; needs figures above 0."""
    mark: float | None = None
    """A value to compare with, drawn as a line."""


@dataclass(frozen=True)
class Lines:
    """A picture: curves through the figures named ``"<series> at <x>"``, on an even axis, with a dot for each seed."""

    series: tuple[str, ...]
    xs: tuple[float, ...]
    x_label: str
    label: str
    """What the curves measure, with the unit."""
    log: bool = False


def at(series: str, x: float) -> str:
    """Return the name of the figure that ``Lines`` draws at ``x``."""
    return f"{series} at {x:g}"


@dataclass(frozen=True)
class Setting:
    """Where claims that train find their text."""

    cache: Path = Path("build/claims")
    """Folder for what is made once: samples of the documentation installed on this machine."""
    corpus: Path | None = None
    """Text to take instead: a file or folder that ``kexue shuffle`` reads."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of the blog that can be measured; the thresholds of ``judge`` are fixed before."""

    name: str
    sentence: str
    """The claim, in our own words."""
    source: int
    """Number of the post, https://kexue.fm/archives/<number>."""
    measured: str
    """What is measured, and on what."""
    refuted_if: str
    """What would refute it, with the thresholds."""
    unit: str
    """Of the figures in ``shown``."""
    shown: tuple[str, ...]
    """Names of the figures that the table shows."""
    picture: Bars | Lines
    seconds: float
    """What all seeds together took: processor seconds of one core of an idle machine, about."""
    measure: Callable[[int, Setting], Figures]
    """Measures with one seed, which decides weights, rows and masks."""
    judge: Callable[[Found], Verdict]
    seeds: int = 3
    trains: bool = False
    """Whether it needs text and training, so that the figures depend on the text."""
    remark: str = ""
    """What a reader of the verdict has to know: the size that it holds for, what is not covered."""

    @property
    def link(self) -> str:
        """Where the claim is made."""
        return f"https://kexue.fm/archives/{self.source}"
