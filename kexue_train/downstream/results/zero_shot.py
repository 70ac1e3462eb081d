"""Tasks that are answered without training for them (``zero_shot.json``)."""

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

Method = Literal["nsp", "pet"]
"""nsp: is the prompt the next sentence? pet: which label's words are probable at the masks?"""
Decision = Literal["candidates", "thresholds", "transductive"]
"""candidates: the best label of each record. thresholds: cuts from the dev set. transductive: from the test set."""
_TITLES = {"nsp": "NSP", "nsp transductive": "NSP\ntransductive", "pet": "PET"}


class ZeroShotScore(ResultPart):
    """One way of answering a task."""

    method: Method
    decision: Decision
    assumption: str | None = None
    """What the decision takes for granted about the data, if anything."""
    accuracy: float
    """Share of right answers, 0 to 1."""
    standard_error: float
    """Standard error of the accuracy, by the number of records."""
    predicted: dict[str, int]
    """Label -> how often it was chosen."""


class InputLoss(ResultPart):
    """What one method lost of a task's texts on their way to the model."""

    method: Method
    cut: int
    """Test records whose text was too long and lost words."""
    unknown_rate: float
    """Share of unknown tokens; near 1 the model cannot read the language."""


class MethodFailure(ResultPart):
    """Why there is no score."""

    method: Method | None
    """None: the task as a whole."""
    error: str


class ZeroShotTaskResult(ResultPart):
    """Everything about one task."""

    task: str
    title: str
    records: int = 0
    num_labels: int = 0
    """The largest number of candidates."""
    chance: float | None = None
    """Expected accuracy of guessing."""
    majority: float | None = None
    """Accuracy of always giving the most frequent label."""
    answers: dict[str, int] = {}
    """Label -> how often it is right."""
    scores: list[ZeroShotScore] = []
    readings: list[InputLoss] = []
    failures: list[MethodFailure] = []
    published: dict[str, float] = {}
    """Accuracies from elsewhere, of other models, 0 to 1."""

    @property
    def own_columns(self) -> dict[str, float]:
        """The model's accuracies as ``nsp`` (by candidates or thresholds), ``nsp transductive`` and ``pet``."""
        return {
            f"{score.method} transductive" if score.decision == "transductive" else score.method: score.accuracy
            for score in self.scores
        }

    @property
    def columns(self) -> dict[str, float]:
        """The model's accuracies together with chance and what is published."""
        chance = {} if self.chance is None else {"chance": self.chance}
        return chance | self.published | self.own_columns


class ZeroShotResults(ResultPart):
    """The contents of the file."""

    kind: Literal["zero_shot"] = "zero_shot"
    schema_version: int = 1
    tool_version: str = __version__
    model_type: str
    parameters: int
    max_length: int
    """Tokens; longer texts lose the end of their longest value, around a blank both outer ends."""
    tasks: list[ZeroShotTaskResult]
    means: dict[str, float]
    """Mean of every column (chance, nsp, pet, published ones) that has a value for all tasks, 0 to 1; tasks that are
    not cut into parts count under ``nsp transductive`` as under ``nsp``."""

    @property
    def failures(self) -> list[ResultFailure]:
        """What has no result, and why."""
        return [
            ResultFailure(result.task, failure.method or "score", failure.error)
            for result in self.tasks
            for failure in result.failures
        ]

    def tables(self) -> list[ResultTable]:
        """Return a row per task, then one of means: chance, what is published, and the model's own accuracies."""
        found = dict.fromkeys(name for result in self.tasks for name in result.columns)
        names = [name for name in ("chance", *self._published(), *_TITLES) if name in found]
        rows = [(result.task, result.records, result.columns) for result in self.tasks]
        means = [("mean", None, self.means)] if len(rows) > 1 else []
        titles = {name: _TITLES.get(name, name) for name in names}
        return [score_table("Zero-shot tasks, without training for them", ("task", "records"), [*rows, *means], titles)]

    def notes(self) -> list[str]:
        """Return what failed, was assumed, was cut, and what the model cannot read."""
        published, cut, unreadable = self._published(), {}, {}
        assumed: dict[str, str] = {}
        for result in self.tasks:
            assumed |= {score.decision: score.assumption for score in result.scores if score.assumption}
            for loss in result.readings:
                where = f"{result.task} ({loss.method})"
                if loss.cut:
                    cut[where] = loss.cut / result.records
                if loss.unknown_rate > UNREADABLE_RATE:
                    unreadable[where] = loss.unknown_rate
        return [
            "Accuracy in percent.",
            *([f"Published, of other models: {', '.join(published)}."] if published else []),
            *(failure.text for failure in self.failures),
            *(f"{decision}: assumes that {assumption}" for decision, assumption in assumed.items()),
            *([f"records cut to {self.max_length} tokens: {list_shares(cut)}"] if cut else []),
            *(
                [f"unknown tokens, so the model cannot read these texts: {list_shares(unreadable)}"]
                if unreadable
                else []
            ),
        ]

    def scores(self) -> list[Score]:
        """Return the model's own accuracies and their means."""
        own = [(result.task, column, value) for result in self.tasks for column, value in result.own_columns.items()]
        own += [("mean of all tasks", column, value) for column, value in self.means.items() if column in _TITLES]
        return [
            Score(
                task,
                "zero-shot-classification",
                "accuracy",
                "zero-shot accuracy, " + _TITLES[column].replace("\n", " "),
                value,
            )
            for task, column, value in own
        ]

    def headlines(self) -> list[Headline]:
        """Return the mean accuracy by next sentences, if all tasks have one."""
        if not {"nsp", "chance"} <= self.means.keys():
            return []
        note = f"{len(self.tasks)} tasks; chance {self.means['chance']:.1%}"
        return [Headline("Zero-shot", f"{self.means['nsp']:.1%}", note)]

    def _published(self) -> list[str]:
        return list(dict.fromkeys(name for result in self.tasks for name in result.published))
