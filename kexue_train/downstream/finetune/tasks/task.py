"""A supervised task, as a YAML file describes it: where its records lie and which of their values mean what.

A template's ``{key}`` is replaced by that value of the record (``{a.b}``: of a mapping in it). ``nlu.yaml`` holds the
known tasks; a file of one's own has the same form. Lengths, batches and epochs default to those of RoFormerV2's CLUE
results (github.com/ZhuiyiTechnology/roformer-v2).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from kexue_train.foundation.config import Config, read_yaml
from kexue_train.foundation.errors import ConfigError

_SUFFIXES = (".yaml", ".yml")


class Task(Config):
    """What tasks of every kind have."""

    title: str
    """What is learnt, in a few words."""
    kind: str
    """classification, tagging, reading or choice."""
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


class ClassificationTask(Task):
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


class TaggingTask(Task):
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


class ReadingTask(Task):
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
    """See ``Task``."""


class ChoiceTask(Task):
    """One of several options, given a text and a question."""

    kind: Literal["choice"]
    context: str = "{context}"
    """Template of the text; too long, it loses its end."""
    question: str = "{question}"
    """Template of what stands before each option."""
    options: str = "options"
    """Key of the list of options."""
    label: str = "label"
    """Key of the place of the right one, counted from 0."""
    max_length: int = Field(default=512, ge=16)
    """See ``Task``."""
    batch_size: int = Field(default=16, ge=1)
    """See ``Task``."""
    accumulation_steps: int = Field(default=4, ge=1)
    """See ``Task``."""


KINDS: dict[str, type[Task]] = {
    "classification": ClassificationTask,
    "tagging": TaggingTask,
    "reading": ReadingTask,
    "choice": ChoiceTask,
}


def load_tasks(chosen: Sequence[str]) -> dict[str, Task]:
    """The tasks named in ``chosen``, each the name of a known task or the path of a YAML file.

    Raises:
        ConfigError: If nothing is chosen, a name is not known, a file cannot be read, or a task in it is wrong.
    """
    with as_file(files(__package__) / "nlu.yaml") as path:
        known = read_tasks(path)
    tasks: dict[str, Task] = {}
    for name in chosen:
        if name in known:
            tasks[name] = known[name]
        elif Path(name).suffix in _SUFFIXES:
            tasks |= read_tasks(Path(name))
        else:
            raise ConfigError(f"there is no task {name!r}; give a YAML file, or one of {', '.join(known)}")
    if not tasks:
        raise ConfigError(f"no task is chosen; give YAML files or some of {', '.join(known)}")
    return tasks


def read_tasks(path: Path) -> dict[str, Task]:
    """The tasks of one file: name -> task.

    Raises:
        ConfigError: If the file cannot be read, or a task in it is wrong: by line and key.
    """
    values, lines = read_yaml(path)
    return {str(name): _parse(path, str(name), task, lines) for name, task in values.items()}


def _parse(path: Path, name: str, task: Any, lines: dict[str, int]) -> Task:
    kind = task.get("kind") if isinstance(task, dict) else None
    if kind not in KINDS:
        given = "no 'kind'" if kind is None else f"the kind {kind!r}"
        raise ConfigError(f"{path}:{lines[name]}: '{name}' has {given}; expected a task of kind {', '.join(KINDS)}")
    own_lines = {key.removeprefix(f"{name}."): line for key, line in lines.items() if key.startswith(f"{name}.")}
    return KINDS[kind].parse(task, where=f"{path}, {name}", lines=own_lines)
