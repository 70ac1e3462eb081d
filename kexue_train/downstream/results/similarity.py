"""How well cosines of sentence vectors rank pairs by similarity (``sts.json``)."""

from __future__ import annotations

from typing import Literal

from kexue_train import __version__
from kexue_train.downstream.results.result import (
    UNREADABLE_RATE,
    Headline,
    ResultFailure,
    ResultPart,
    ResultTable,
    Score,
    list_shares,
    score_table,
)
from kexue_train.downstream.settings import Pooling

WhiteningKind = Literal["none", "own", "given"]
"""own: fitted on the set's sentences, without their scores. given: fitted before, on others."""


class StsScore(ResultPart):
    """One way of making vectors."""

    pooling: Pooling
    whitening: WhiteningKind
    dimensions: int
    """Size of the vectors that are compared."""
    asked_dimensions: int | None = None
    """How many the whitening was to keep; None: all that vary."""
    spearman: float
    """Rank correlation of cosines and scores, -1 to 1."""
    standard_error: float
    """Standard error of the correlation, by the number of pairs."""

    @property
    def column(self) -> str:
        """The name of the column."""
        return column_of(self.pooling, self.whitening, self.asked_dimensions)


def column_of(pooling: Pooling, whitening: WhiteningKind, dimensions: int | None) -> str:
    """Return a name such as ``mean``, ``mean whitened`` or ``mean whitened 256``."""
    if whitening == "none":
        return pooling
    whitened = f"{pooling} whitened" if whitening == "own" else f"{pooling} given whitening"
    return f"{whitened} {dimensions}" if dimensions else whitened


class StsFailure(ResultPart):
    """Why there is no score."""

    column: str | None
    """The column that has none; None: the set as a whole."""
    error: str


class StsSetResult(ResultPart):
    """Everything about one set."""

    name: str
    language: str
    pairs: int = 0
    sentences: int = 0
    """Different ones."""
    cut: int = 0
    """Sentences that were too long and lost their end."""
    unknown_rate: float = 0.0
    """Share of unknown tokens; near 1 the model cannot read the language."""
    scores: list[StsScore] = []
    baselines: dict[str, float] = {}
    """Spearman correlations without a model: of ``random`` vectors, and of words weighted by ``tf-idf``."""
    failures: list[StsFailure] = []
    published: dict[str, float] = {}
    """Spearman correlations from elsewhere, of other models, -1 to 1."""

    @property
    def own_columns(self) -> dict[str, float]:
        """The model's correlations."""
        return {score.column: score.spearman for score in self.scores}

    @property
    def columns(self) -> dict[str, float]:
        """The model's correlations together with the baselines."""
        return self.baselines | self.own_columns


class StsResults(ResultPart):
    """The contents of the file."""

    kind: Literal["sentence_similarity"] = "sentence_similarity"
    schema_version: int = 1
    tool_version: str = __version__
    model_type: str
    parameters: int
    max_length: int
    """Tokens; longer sentences lose their end."""
    sets: list[StsSetResult]
    means: dict[str, dict[str, float]]
    """Language, and ``all`` where there are several -> column -> mean over its sets, where all of them have a value."""

    @property
    def failures(self) -> list[ResultFailure]:
        """What has no result, and why."""
        return [
            ResultFailure(result.name, failure.column or "score", failure.error)
            for result in self.sets
            for failure in result.failures
        ]

    def tables(self) -> list[ResultTable]:
        """Return a row per set, then the means: Spearman correlations of every kind of vectors."""
        names = dict.fromkeys(name for result in self.sets for name in result.columns)
        titles = {name: name.replace(" ", "\n").replace("first-", "first-\n") for name in names}
        rows = [(result.name, result.pairs, result.columns) for result in self.sets]
        means = [(f"mean, {group}", None, values) for group, values in self.means.items()] if len(rows) > 1 else []
        return [score_table("Sentence similarity", ("set", "pairs"), [*rows, *means], titles)]

    def notes(self) -> list[str]:
        """Return what failed, what the whitening has seen, what was cut or hard to read, and what is published."""
        found = [
            "Spearman correlation of cosines with people's scores, times 100.",
            *(failure.text for failure in self.failures),
        ]
        if any(score.whitening == "own" for result in self.sets for score in result.scores):
            found.append("whitened: by mean and covariance of the set's own sentences, without their scores")
        if cut := [f"{result.name} {result.cut}" for result in self.sets if result.cut]:
            found.append(f"sentences cut to {self.max_length} tokens: {', '.join(cut)}")
        unknown = {result.name: result.unknown_rate for result in self.sets if result.unknown_rate > UNREADABLE_RATE}
        if unknown:
            found.append(f"unknown tokens: {list_shares(unknown)}")
        for result in self.sets:
            if result.published:
                rows = ", ".join(f"{name} {100 * value:.1f}" for name, value in result.published.items())
                found.append(f"published for {result.name}, of other models: {rows}")
        return found

    def scores(self) -> list[Score]:
        """Return the model's own correlations."""
        return [
            Score(result.name, "sentence-similarity", "spearman", f"Spearman, {column}", value)
            for result in self.sets
            for column, value in result.own_columns.items()
        ]

    def headlines(self) -> list[Headline]:
        """Return nothing: no column stands for all sets."""
        return []
