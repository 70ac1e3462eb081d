"""Fine-tuning on supervised tasks (``tasks.json``), compared with a random encoder and baselines."""

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
)
from kexue_train.downstream.results.training import SeedRun, Split, SplitScores, Spread, reported_split
from kexue_train.downstream.settings import FitSettings

EncoderKind = Literal["pretrained", "random"]
"""pretrained: the model as given. random: the same sizes with fresh weights."""
_BASELINES = ("chance", "majority", "bag_of_words")
_ENCODERS: tuple[EncoderKind, ...] = ("random", "pretrained")
_HEADER = ["task", "learnt\nfrom", "scored", "metric", "chance", "majority", "bag of\nwords", "random\nencoder"]
_TASK_TYPES = {
    "classification": "text-classification",
    "tagging": "token-classification",
    "reading": "question-answering",
    "choice": "multiple-choice",
    "similarity": "sentence-similarity",
}


class EncoderResult(ResultPart):
    """An encoder, trained once per seed."""

    encoder: EncoderKind
    runs: list[SeedRun]
    scores: dict[Split, dict[str, Spread]]
    """Spread over the runs."""


class Baseline(ResultPart):
    """What needs no encoder."""

    name: str
    """chance, majority (the most frequent label of the training set), or bag_of_words (logistic regression; for
    similarity cosines of tf-idf)."""
    scores: SplitScores
    penalty: float | None = None
    """Penalty of the regression's weights, chosen on dev."""


class SeedFailure(ResultPart):
    """Why something is missing."""

    encoder: EncoderKind | None
    """None: the task as a whole."""
    seed: int | None
    error: str


class FineTunedTaskResult(ResultPart):
    """Everything about one task."""

    task: str
    title: str
    kind: str
    metric: str | None = None
    """The one that chooses the epoch and stands in the table."""
    records: dict[str, int] = {}
    """Split -> records; ``examples``: what an epoch goes through, windows or pieces of the training records."""
    is_dev_held_out: bool = False
    """Whether dev is a tenth of the training file, for lack of a file of its own."""
    num_labels: int | None = None
    """Outputs of the head."""
    max_length: int | None = None
    """Tokens of a sequence."""
    cut: int = 0
    """Sequences that lost tokens, or texts read in pieces, of all splits."""
    unknown_rate: float = 0.0
    """Share of unknown tokens; near 1 the model cannot read the language."""
    fit: FitSettings | None = None
    """How it was trained."""
    rdrop: float = 0.0
    """Weight of R-Drop; 0: without."""
    baselines: list[Baseline] = []
    encoders: list[EncoderResult] = []
    failures: list[SeedFailure] = []

    @property
    def split(self) -> Split:
        """The split that is reported."""
        return reported_split(self.records)

    @property
    def row(self) -> list[str]:
        """The row of the table."""
        metric, split = self.metric or "", self.split
        baselines = {baseline.name: f"{100 * baseline.scores[split][metric]:.1f}" for baseline in self.baselines}
        encoders = {encoder.encoder: encoder.scores[split][metric].text for encoder in self.encoders}
        return [
            self.task,
            f"{self.records['train']:,}" if self.records else "",
            f"{self.records[split]:,} {split}" if self.records else "",
            metric.replace("_", " "),
            *(baselines.get(name, "") for name in _BASELINES),
            *(encoders.get(name, "") for name in _ENCODERS),
        ]


class FineTuningResults(ResultPart):
    """The contents of the file."""

    kind: Literal["fine_tuning"] = "fine_tuning"
    schema_version: int = 1
    tool_version: str = __version__
    model_type: str
    parameters: int
    """Weights of the encoder, without heads."""
    seeds: int
    """Trainings of each encoder."""
    one_segment: bool
    """Whether all token types were 0."""
    tasks: list[FineTunedTaskResult]

    @property
    def failures(self) -> list[ResultFailure]:
        """What has no result, and why."""
        return [
            ResultFailure(
                result.task,
                f"score of the {failure.encoder} encoder, seed {failure.seed}" if failure.encoder else "score",
                failure.error,
            )
            for result in self.tasks
            for failure in result.failures
        ]

    def tables(self) -> list[ResultTable]:
        """Return a row per task; encoders as mean ± standard deviation over seeds."""
        return [ResultTable("Fine-tuned", [*_HEADER, "encoder"], [result.row for result in self.tasks])]

    def notes(self) -> list[str]:
        """Return what failed, what was scored on the records that chose the epoch, what was cut or cannot be read."""
        found = [
            f"In percent; the encoders over {self.seeds} seeds, mean ± standard deviation.",
            *(failure.text for failure in self.failures),
        ]
        if any(result.metric == "spearman" for result in self.tasks):
            found.append("Spearman: rank correlation with people's scores, times 100; bag of words: cosines of tf-idf.")
        if on_dev := [result.task for result in self.tasks if result.records and result.split == "dev"]:
            found.append(f"scored on the records that chose the epoch, so a little too well: {', '.join(on_dev)}")
        if cut := [f"{result.task} {result.cut:,} of {result.max_length}" for result in self.tasks if result.cut]:
            found.append(f"sequences cut, or texts read in pieces, of so many tokens: {', '.join(cut)}")
        unreadable = {
            result.task: result.unknown_rate for result in self.tasks if result.unknown_rate > UNREADABLE_RATE
        }
        if unreadable:
            found.append(f"unknown tokens, so the model cannot read these texts: {list_shares(unreadable)}")
        return found

    def scores(self) -> list[Score]:
        """Return the means of the pretrained encoder."""
        return [
            Score(task.task, _TASK_TYPES.get(task.kind, task.kind), metric, f"{metric} after fine-tuning", spread.mean)
            for task in self.tasks
            for encoder in task.encoders
            for metric, spread in encoder.scores.get(task.split, {}).items()
            if encoder.encoder == "pretrained" and metric == task.metric
        ]

    def headlines(self) -> list[Headline]:
        """Return nothing: tasks have different metrics."""
        return []
