"""What training sentence vectors found: the typed contents of its JSON file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from kexue_train import __version__
from kexue_train.downstream.evaluate.sentence_vectors.pooling import Pooling
from kexue_train.downstream.finetune.fit_settings import FitSettings
from kexue_train.downstream.finetune.tasks.results import SeedRun, Split, Spread

SCHEMA_VERSION = 1
Loss = Literal["cosent", "sentence-bert", "am-softmax"]
Scores = dict[Split, dict[str, float]]
"""Split -> metric -> value. ``spearman`` of pairs; ``accuracy`` and ``mrr`` of retrieval, 0 to 1."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class VectorFailure(_Frozen):
    """Why something is missing."""

    what: str
    """``set``, ``tf-idf``, ``before`` or ``seed N``."""
    error: str


class VectorSetResult(_Frozen):
    """Everything about one set."""

    name: str
    metric: str | None = None
    """The one that chooses the epoch and stands in the table."""
    records: dict[str, int] = {}
    """Split -> records."""
    is_dev_held_out: bool = False
    """Whether dev is a tenth of the training file, for lack of a file of its own."""
    num_labels: int | None = None
    """Different labels of the training records; scores rounded to whole numbers."""
    cut: int = 0
    """Sentences, of all splits, that were too long and lost their end."""
    unknown_rate: float = 0.0
    """Largest share of unknown tokens in a split; near 1 the model cannot read the language."""
    words: Scores | None = None
    """Of tf-idf vectors, without a model."""
    before: Scores | None = None
    """Of the encoder as it is."""
    runs: list[SeedRun] = []
    after: dict[Split, dict[str, Spread]] = {}
    """Over the runs."""
    failures: list[VectorFailure] = []

    @property
    def split(self) -> Split:
        """The split that is reported."""
        return "test" if "test" in self.records else "dev"


class VectorResults(_Frozen):
    """The contents of the file."""

    schema_version: int = SCHEMA_VERSION
    tool_version: str = __version__
    model_type: str
    parameters: int
    loss: Loss
    pooling: Pooling
    max_length: int
    """Tokens; longer sentences lose their end."""
    seeds: int
    """Trainings on each set."""
    fit: FitSettings
    """How each was trained."""
    sets: list[VectorSetResult]
