"""Tasks whose few records the head of next sentences has learnt (``few_shot.json``), beside published results."""

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
from kexue_train.downstream.results.training import SeedRun, Split, Spread
from kexue_train.downstream.results.zero_shot import Decision
from kexue_train.downstream.settings import FitSettings


class ZeroShotBefore(ResultPart):
    """The score without training."""

    decision: Decision
    assumption: str | None = None
    """What the decision takes for granted about the data, if anything."""
    accuracy: float


class PermutedScores(ResultPart):
    """Accuracies where prompts stand in the wrong place: they have to be at chance."""

    zero_shot: float | None = None
    """None where samples are compared: their cuts give every label its share, whatever is asked."""
    tuned: float | None = None
    """After the training with the first seed that did not fail."""


class FewShotFailure(ResultPart):
    """Why something is missing."""

    what: str
    """``score``, ``zero-shot score``, ``control`` or ``seed N``."""
    error: str


class FewShotTaskResult(ResultPart):
    """Everything about one task."""

    task: str
    title: str
    split: str | None = None
    """Name of the training split; None where there is only one."""
    records: dict[str, int] = {}
    """``train``, ``dev`` (chooses the epoch) and ``test`` -> records."""
    num_labels: int | None = None
    """The largest number of candidates."""
    chance: float | None = None
    """Expected accuracy of guessing."""
    majority: float | None = None
    """Accuracy of always giving the most frequent label of the test records."""
    zero_shot: ZeroShotBefore | None = None
    cut: int = 0
    """Test records whose text was too long and lost words."""
    unknown_rate: float = 0.0
    """Share of unknown tokens in the test records; near 1 the model cannot read the language."""
    runs: list[SeedRun] = []
    after: dict[Split, dict[str, Spread]] = {}
    """Spread over the runs."""
    permuted: PermutedScores = PermutedScores()
    published: dict[str, float] = {}
    """Accuracies from elsewhere, learnt from a few records by other models, 0 to 1."""
    published_zero_shot: dict[str, float] = {}
    """Accuracies from elsewhere, without training, 0 to 1."""
    failures: list[FewShotFailure] = []

    @property
    def row(self) -> list[str]:
        """The row of the table."""
        before = self.zero_shot.accuracy if self.zero_shot else None
        after = self.after["test"]["accuracy"].text if self.after else ""
        shares = [_percent(value) for value in (self.chance, self.majority, before)]
        controls = [_percent(self.permuted.zero_shot), _percent(self.permuted.tuned)]
        records = [f"{self.records[split]:,}" if self.records else "" for split in ("train", "test")]
        return [self.task, *records, *shares, after, *controls]


class FewShotResults(ResultPart):
    """The contents of the file."""

    kind: Literal["few_shot"] = "few_shot"
    schema_version: int = 1
    tool_version: str = __version__
    model_type: str
    parameters: int
    max_length: int
    """Tokens; longer texts lose the end of their longest value."""
    seeds: int
    """Trainings on each task."""
    fit: FitSettings
    """How each was trained."""
    tasks: list[FewShotTaskResult]

    @property
    def failures(self) -> list[ResultFailure]:
        """What has no result, and why."""
        return [
            ResultFailure(result.task, failure.what, failure.error)
            for result in self.tasks
            for failure in result.failures
        ]

    def tables(self) -> list[ResultTable]:
        """Return a row per task with the controls, and what is published of other models."""
        header = ["task", "learnt\nfrom", "scored", "chance", "majority", "NSP\nzero-shot", "NSP\ntuned"]
        header += ["permuted\nzero-shot", "permuted\ntuned"]
        own = ResultTable("Few-shot tasks, next sentences tuned", header, [result.row for result in self.tasks])
        names = list(dict.fromkeys(name for result in self.tasks for name in result.published))
        if not names:
            return [own]
        rows = [[result.task, *(_percent(result.published.get(name)) for name in names)] for result in self.tasks]
        return [own, ResultTable("Published few-shot results, of other models", ["task", *names], rows)]

    def notes(self) -> list[str]:
        """Return what the columns mean, what failed, what a decision assumed, and which splits were learnt."""
        found = [
            f"Accuracy in percent; tuned over {self.seeds} seeds, mean ± standard deviation.",
            "permuted: prompts in the wrong place, which has to be at chance",
            *(failure.text for failure in self.failures),
        ]
        assumed = {
            result.zero_shot.decision: result.zero_shot.assumption
            for result in self.tasks
            if result.zero_shot and result.zero_shot.assumption
        }
        found += [f"zero-shot by {decision}: assumes that {assumption}" for decision, assumption in assumed.items()]
        if splits := [f"{result.task} {result.split}" for result in self.tasks if result.split]:
            found.append(f"training splits: {', '.join(splits)}")
        if cut := {result.task: result.cut / result.records["test"] for result in self.tasks if result.cut}:
            found.append(f"records cut to {self.max_length} tokens: {list_shares(cut)}")
        unknown = {result.task: result.unknown_rate for result in self.tasks if result.unknown_rate > UNREADABLE_RATE}
        if unknown:
            found.append(f"unknown tokens, so the model cannot read these texts: {list_shares(unknown)}")
        for result in self.tasks:
            if result.published_zero_shot:
                rows = ", ".join(f"{name} {_percent(value)}" for name, value in result.published_zero_shot.items())
                found.append(f"published for {result.task} without training, of other models: {rows}")
        return found

    def scores(self) -> list[Score]:
        """Return the means after training."""
        return [
            Score(
                result.task,
                "text-classification",
                "accuracy",
                "accuracy of next sentences, tuned on a few records",
                result.after["test"]["accuracy"].mean,
            )
            for result in self.tasks
            if result.after
        ]

    def headlines(self) -> list[Headline]:
        """Return nothing: tasks differ in chance."""
        return []


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
