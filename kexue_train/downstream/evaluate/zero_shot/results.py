"""What a zero-shot evaluation found: the typed contents of its JSON file."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from kexue_train import __version__

SCHEMA_VERSION = 1
Method = Literal["nsp", "pet"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Score(_Frozen):
    """One way of answering a task."""

    method: Method
    """nsp: is the prompt the next sentence? pet: which label's words are probable at the masks?"""
    decision: Literal["candidates", "thresholds", "transductive"]
    """candidates: the best label of each record. thresholds: cuts from the dev set. transductive: cuts from the test
    set itself."""
    assumption: str | None = None
    """What the decision takes for granted about the data, if anything."""
    accuracy: float
    """Share of right answers, 0 to 1."""
    standard_error: float
    """Of the accuracy, by the number of records."""
    predicted: dict[str, int]
    """Label -> how often it was chosen."""


class Reading(_Frozen):
    """How the texts of a task reached the model with one method."""

    method: Method
    cut: int
    """Test records whose text was too long and lost words."""
    unknown_rate: float
    """Share of unknown tokens; near 1 the model cannot read the language."""


class Failure(_Frozen):
    """Why there is no score."""

    method: Method | None
    """None: the task as a whole."""
    error: str


class TaskResult(_Frozen):
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
    scores: list[Score] = []
    readings: list[Reading] = []
    failures: list[Failure] = []
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
        """The same beside chance and what is published."""
        chance = {} if self.chance is None else {"chance": self.chance}
        return chance | self.published | self.own_columns


class ZeroShotResults(_Frozen):
    """The contents of the file."""

    schema_version: int = SCHEMA_VERSION
    tool_version: str = __version__
    model_type: str
    parameters: int
    max_length: int
    """Tokens; longer texts lose the end of their longest value, around a blank both outer ends."""
    tasks: list[TaskResult]
    means: dict[str, float]
    """Of every column (chance, nsp, pet, published ones) that has a value for all tasks, 0 to 1; tasks that are not cut
    into parts count under ``nsp transductive`` as under ``nsp``."""
