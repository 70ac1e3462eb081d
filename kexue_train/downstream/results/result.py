"""What every result offers, whatever was evaluated, and the parts that several kinds share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from kexue_train.foundation.errors import KexueError

_LOWER_IS_BETTER = {"loss", "perplexity"}
_NOT_SHARES = {*_LOWER_IS_BETTER, "spearman"}
TASK_ERRORS = (KexueError, RuntimeError, MemoryError)
"""What may go wrong in one task alone; RuntimeError is also how PyTorch says that a device has too little memory."""
UNREADABLE_RATE = 0.2
"""A larger share of unknown tokens is worth a note."""


class ResultTable(NamedTuple):
    """A table of text; the first column names the row, an empty cell says that there is no value.

    A line break in a title shows where it may be broken on a narrow screen.
    """

    caption: str
    header: list[str]
    rows: list[list[str]]


class Score(NamedTuple):
    """One number that says how good the model is; runs are compared by it."""

    group: str
    """What was asked: ``held-out text``, a task, a set."""
    task_type: str
    """The task in Hugging Face's words, such as ``fill-mask``."""
    metric: str
    """``accuracy``, ``loss``, ``perplexity``, ``spearman``, ``f1``..."""
    name: str
    """What it is called on the page."""
    value: float

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value is better."""
        return self.metric not in _LOWER_IS_BETTER

    @property
    def text(self) -> str:
        """The value as it is shown."""
        return f"{self.value:.3f}" if self.metric in _NOT_SHARES else f"{self.value:.1%}"


class ResultFailure(NamedTuple):
    """Something that has no result."""

    subject: str
    """The task or set."""
    missing: str
    """What is missing: ``score``, or a part of it."""
    reason: str

    @property
    def text(self) -> str:
        """The failure in one line."""
        return f"{self.subject}: no {self.missing}: {self.reason}"


def reason_of(error: BaseException) -> str:
    """Return the message of an error, or its name if it has none."""
    return str(error).strip() or type(error).__name__


class Headline(NamedTuple):
    """One large number for the top of a page."""

    label: str
    value: str
    note: str = ""


class EvaluationResult(Protocol):
    """What an evaluation found, as every reader sees it."""

    @property
    def kind(self) -> str:
        """The kind that the file names."""

    @property
    def failures(self) -> list[ResultFailure]:
        """What has no result, and why."""

    def tables(self) -> list[ResultTable]:
        """Return the values, compared with baselines and published values."""

    def notes(self) -> list[str]:
        """Return what has to be known to read the tables: units, failures, assumptions, what was cut."""

    def scores(self) -> list[Score]:
        """Return the numbers by which runs are compared and models are found."""

    def headlines(self) -> list[Headline]:
        """Return the few numbers that sum it up."""

    def model_dump(self, *, mode: str = "python") -> dict[str, Any]:
        """Return the contents of the file."""


class ResultPart(BaseModel):
    """Base of the typed contents of result files: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def score_table(
    caption: str,
    names: tuple[str, str],
    rows: Sequence[tuple[str, int | None, Mapping[str, float]]],
    titles: Mapping[str, str],
) -> ResultTable:
    """Return a table with a row per task and a column per way of scoring, values times 100.

    Args:
        caption: Of the table.
        names: Titles of the first two columns: what a row is, what it counts.
        rows: Name, count (None for a mean) and values by column of every row.
        titles: Column -> its title, in order.
    """
    header = [*names, *titles.values()]
    return ResultTable(
        caption,
        header,
        [
            [
                name,
                "" if count is None else f"{count:,}",
                *(f"{100 * values[column]:.1f}" if column in values else "" for column in titles),
            ]
            for name, count, values in rows
        ],
    )


def mean_columns(columns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every column that has a value in all of the rows ``columns``."""
    names = [name for name in columns[0] if all(name in values for values in columns)] if columns else []
    return {name: float(np.mean([values[name] for values in columns])) for name in names}


def list_shares(shares: Mapping[str, float]) -> str:
    """Return names with their shares in percent, for a note."""
    return ", ".join(f"{name} {share:.0%}" for name, share in shares.items())


def confidence(share: float, number: int) -> float:
    """Return half the width of the 95 % interval of a share observed on ``number`` independent cases."""
    return 1.96 * math.sqrt(max(0.0, share * (1 - share)) / number) if number else 1.0
