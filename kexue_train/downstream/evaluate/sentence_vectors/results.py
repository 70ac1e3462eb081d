"""What an evaluation of sentence vectors found: the typed contents of its JSON file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from kexue_train import __version__
from kexue_train.downstream.evaluate.sentence_vectors.pooling import Pooling

SCHEMA_VERSION = 1
WhiteningKind = Literal["none", "own", "given"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StsScore(_Frozen):
    """One way of making vectors."""

    pooling: Pooling
    whitening: WhiteningKind
    """own: fitted on this set's sentences, without their scores. given: fitted before, on others."""
    dimensions: int
    """Of the vectors that are compared."""
    asked_dimensions: int | None = None
    """How many the whitening was to keep; None: all that vary."""
    spearman: float
    """Rank correlation of cosines and scores, -1 to 1."""
    standard_error: float
    """Of it, by the number of pairs."""

    @property
    def column(self) -> str:
        """Its name."""
        return column_of(self.pooling, self.whitening, self.asked_dimensions)


def column_of(pooling: Pooling, whitening: WhiteningKind, dimensions: int | None) -> str:
    """A name such as ``mean``, ``mean whitened`` or ``mean whitened 256``."""
    if whitening == "none":
        return pooling
    whitened = f"{pooling} whitened" if whitening == "own" else f"{pooling} given whitening"
    return f"{whitened} {dimensions}" if dimensions else whitened


class StsFailure(_Frozen):
    """Why there is no score."""

    column: str | None
    """The column that has none; None: the set as a whole."""
    error: str


class StsSetResult(_Frozen):
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
        """The same beside the baselines."""
        return self.baselines | self.own_columns


class StsResults(_Frozen):
    """The contents of the file."""

    schema_version: int = SCHEMA_VERSION
    tool_version: str = __version__
    model_type: str
    parameters: int
    max_length: int
    """Tokens; longer sentences lose their end."""
    sets: list[StsSetResult]
    means: dict[str, dict[str, float]]
    """Language, and ``all`` where there are several -> column -> mean over its sets, where all of them have a value."""
