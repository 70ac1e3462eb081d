"""A supervised task, as a YAML file describes it: where its records lie and which of their values mean what.

A template's ``{key}`` is replaced by that value of the record (``{a.b}``: of a mapping in it). ``nlu.yaml`` holds the
known tasks; your own file has the same form. Lengths, batches and epochs default to those of RoFormerV2's CLUE
results (github.com/ZhuiyiTechnology/roformer-v2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from kexue_train.downstream.task_files import TaskEntry, choose_tasks, read_catalogue
from kexue_train.foundation.config import Config
from kexue_train.foundation.errors import ConfigError


class SupervisedTask(Config):
    """What tasks of every kind have."""

    title: str
    """What is learnt, in a few words."""
    kind: str
    """classification, tagging, reading, choice or similarity."""
    train: str
    """JSON Lines file to learn from, relative to the folder of the data; .gz too, like the next two."""
    dev: str | None = None
    """JSON Lines file that chooses the epoch; by default a tenth of the training texts is held out for that."""
    test: str | None = None
    """JSON Lines file that is scored once, at the end; by default the scores are those of ``dev``."""
    max_length: int = Field(default=128, ge=16)
    """Tokens of a sequence, never more than the model was made for."""
    batch_size: int = Field(default=32, ge=1)
    """Records per step."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Pieces that a batch is computed in, for less memory."""
    epochs: int = Field(default=10, ge=1)
    """Times that every record is seen."""


class ClassificationTask(SupervisedTask):
    """A label for a text or a pair of texts."""

    kind: Literal["classification"]
    text: str = "{text}"
    """Template of the text."""
    text_b: str | None = None
    """Template of the other text of a pair."""
    label: str = "label"
    """Key of the label."""
    labels: tuple[str, ...] = ()
    """All labels; by default those of ``train``."""

    @field_validator("labels")
    @classmethod
    def _are_a_choice(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) == 1 or len(set(value)) < len(value):
            raise ValueError("give at least two labels, each once; or none, for those of the training file")
        return value


class TaggingTask(SupervisedTask):
    """Entities in a text: spans with a type."""

    kind: Literal["tagging"]
    text: str | None = None
    """Key of the text, with ``entities``."""
    entities: str = "entities"
    """Key of the spans, in characters: a list of {start, end (exclusive), type}, or as in CLUENER
    {type: {mention: [[start, end inclusive], ...]}}."""
    tokens: str | None = None
    """Instead: key of a list of words or characters, with ``tags``."""
    tags: str = "tags"
    """Key of their tags: BIO, BMES, BIOES or BILOU."""
    joined_by: str = ""
    """What stands between two ``tokens``: nothing in Chinese, a space in English."""
    max_length: int = Field(default=256, ge=16)
    """Tokens of a sequence; a longer text is read in pieces."""

    @model_validator(mode="after")
    def _has_one_form(self) -> Self:
        if (self.text is None) == (self.tokens is None):
            raise ValueError("give text (with entities) or tokens (with tags), one of the two")
        return self


class ReadingTask(SupervisedTask):
    """The answer to a question as a span of a text."""

    kind: Literal["reading"]
    context: str = "context"
    """Key of the text."""
    question: str = "question"
    """Key of the question."""
    answers: str = "answers"
    """Key of a list of {text, start}; all are right, the first one found in the text is learnt."""
    scoring: Literal["squad", "squad_zh", "cmrc"] = "squad"
    """Whose official scores; see ``answer_scores.py``."""
    max_length: int = Field(default=512, ge=16)
    """Tokens of a window."""
    stride: int = Field(default=128, ge=1)
    """Tokens from the start of a window to that of the next."""
    accumulation_steps: int = Field(default=2, ge=1)
    """Pieces that a batch is computed in, for less memory."""


class ChoiceTask(SupervisedTask):
    """One of several options, given a text and a question."""

    kind: Literal["choice"]
    context: str = "{context}"
    """Template of the text; too long, it loses its end."""
    question: str = "{question}"
    """Template of what stands before each option."""
    options: str = "options"
    """Key of the list of options."""
    label: str = "label"
    """Key of the index of the right one, counted from 0."""
    max_length: int = Field(default=512, ge=16)
    """Tokens of a sequence."""
    batch_size: int = Field(default=16, ge=1)
    """Records per step."""
    accumulation_steps: int = Field(default=4, ge=1)
    """Pieces that a batch is computed in, for less memory."""


class SimilarityTask(SupervisedTask):
    """How alike the two texts of a pair are, read together: an order, not classes."""

    kind: Literal["similarity"]
    text: str = "{text_a}"
    """Template of the text."""
    text_b: str = "{text_b}"
    """Template of the other text."""
    score: str = "score"
    """Key of a number: the more, the more alike. Only its order counts."""


KINDS: dict[str, type[SupervisedTask]] = {
    "classification": ClassificationTask,
    "tagging": TaggingTask,
    "reading": ReadingTask,
    "choice": ChoiceTask,
    "similarity": SimilarityTask,
}


def load_supervised_tasks(chosen: Sequence[str]) -> dict[str, SupervisedTask]:
    """Return the tasks named in ``chosen``, each the name of a known task or the path of a YAML file.

    Raises:
        ConfigError: If nothing is chosen, a name is not known, a file cannot be read, or a task in it is wrong.
    """
    known = load_known_tasks()
    if not chosen:
        raise ConfigError(f"no task is chosen; give YAML files or some of {', '.join(known)}")
    return choose_tasks(chosen, known, parse_supervised_task)


def load_known_tasks() -> dict[str, SupervisedTask]:
    """Return the tasks of ``nlu.yaml`` by name."""
    return read_catalogue(__package__, "nlu.yaml", parse_supervised_task)


def parse_supervised_task(entry: TaskEntry) -> SupervisedTask:
    """Return the task of an entry, by its kind.

    Raises:
        ConfigError: If the kind is missing or not known, or a value is wrong: by line and key.
    """
    kind = entry.values.get("kind") if isinstance(entry.values, dict) else None
    if kind not in KINDS:
        given = "no 'kind'" if kind is None else f"the kind {kind!r}"
        raise ConfigError(f"{entry.line} has {given}; expected a task of kind {', '.join(KINDS)}")
    return KINDS[kind].parse(entry.values, where=entry.where, lines=entry.lines)
