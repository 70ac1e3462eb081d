"""Sentence vectors that were trained, on labels or on sentences alone (``vectors.json``): scores before and after."""

from __future__ import annotations

from typing import Literal

from kexue_train import __version__
from kexue_train.downstream.results.result import Headline, ResultFailure, ResultPart, ResultTable, Score
from kexue_train.downstream.results.training import SeedRun, Split, SplitScores, Spread, reported_split
from kexue_train.downstream.settings import FitSettings, Pooling, VectorLoss

_SHOWN_METRICS = {"spearman": ["spearman"], "accuracy": ["accuracy", "mrr"], None: []}


class VectorFailure(ResultPart):
    """Why something is missing."""

    what: str
    """``set``, ``tf-idf``, ``before`` or ``seed N``."""
    error: str


class VectorSetResult(ResultPart):
    """Everything about one set."""

    name: str
    metric: Literal["spearman", "accuracy"] | None = None
    """The one that chooses the epoch: ``spearman`` of pairs, ``accuracy`` of retrieval."""
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
    words: SplitScores | None = None
    """Scores of tf-idf vectors, without a model."""
    before: SplitScores | None = None
    """Scores of the encoder as it is."""
    runs: list[SeedRun] = []
    after: dict[Split, dict[str, Spread]] = {}
    """Spread over the runs."""
    margins: list[float] = []
    """What each training had as its margin, where it was taken from the diameter of the classes."""
    failures: list[VectorFailure] = []

    @property
    def split(self) -> Split:
        """The split that is reported."""
        return reported_split(self.records)

    @property
    def rows(self) -> list[list[str]]:
        """The rows of the table, one per metric."""
        after = self.after.get(self.split, {})
        return [
            [
                self.name,
                f"{self.records.get('train', 0):,}",
                metric,
                *(f"{100 * scores[self.split][metric]:.1f}" if scores else "" for scores in (self.words, self.before)),
                after[metric].text if metric in after else "",
            ]
            for metric in _SHOWN_METRICS[self.metric]
        ]


class SentenceFacts(ResultPart):
    """The sentences of a training without labels."""

    source: str
    """Name of the file or folder."""
    learnt: int
    """Different sentences that were learnt from."""
    found: int
    """Sentences in the files."""
    repeated: int
    """Those of them that were there before, and left out."""
    rejected: dict[str, int]
    """Reason -> records that could not be read."""
    cut: int
    """Sentences that were too long and lost their end."""
    unknown_rate: float
    """Share of unknown tokens."""


class VectorResults(ResultPart):
    """The contents of the file."""

    kind: Literal["trained_vectors"] = "trained_vectors"
    schema_version: int = 1
    tool_version: str = __version__
    model_type: str
    parameters: int
    loss: VectorLoss
    temperature: float | None = None
    """Of simcse."""
    scale: float | None = None
    """Of am-softmax."""
    margin: float | None = None
    """Of am-softmax; None also where it was taken from the classes of each set."""
    pooling: Pooling
    max_length: int
    """Tokens; longer sentences lose their end."""
    seeds: int
    """Trainings on each set."""
    fit: FitSettings
    """How each was trained."""
    sentences: SentenceFacts | None = None
    """What was learnt from without labels."""
    sets: list[VectorSetResult]

    @property
    def failures(self) -> list[ResultFailure]:
        """What has no result, and why."""
        return [
            ResultFailure(result.name, failure.what, failure.error)
            for result in self.sets
            for failure in result.failures
        ]

    def tables(self) -> list[ResultTable]:
        """Return a row per set and metric; after training as mean ± standard deviation over seeds."""
        header = ["set", "train", "metric", "tf-idf", "before", "after"]
        return [ResultTable("Sentence vectors, trained", header, [row for result in self.sets for row in result.rows])]

    def notes(self) -> list[str]:
        """Return what failed, where dev stands for test, which sentences were cut."""
        found = [
            f"Times 100; trained with {self.loss} on {self.seeds} seeds, mean ± standard deviation.",
            *(failure.text for failure in self.failures),
        ]
        if (facts := self.sentences) is not None:
            found.append(
                f"learnt from {facts.learnt:,} sentences of {facts.source} without labels; the last epoch is scored, "
                "and no score of a pair was seen"
            )
            if facts.rejected:
                reasons = ", ".join(f"{reason} {count:,}" for reason, count in facts.rejected.items())
                found.append(f"{facts.source}: records that could not be read: {reasons}")
            if facts.cut:
                found.append(f"{facts.source}: {facts.cut:,} sentences cut to {self.max_length} tokens")
        for result in self.sets:
            if result.margins:
                margins = ", ".join(f"{margin:.3f}" for margin in result.margins)
                found.append(f"{result.name}: margins from the diameter of the classes: {margins}")
            if "dev" in result.records and result.split == "dev":
                found.append(f"{result.name}: scored on dev, which also chose the epoch, for lack of a test file")
            if result.cut:
                found.append(f"{result.name}: {result.cut} sentences cut to {self.max_length} tokens")
        return found

    def scores(self) -> list[Score]:
        """Return the means after training."""
        return [
            Score(result.name, "sentence-similarity", metric, f"{metric} after training with {self.loss}", spread.mean)
            for result in self.sets
            for metric, spread in result.after.get(result.split, {}).items()
        ]

    def headlines(self) -> list[Headline]:
        """Return nothing: sets have different metrics."""
        return []
