"""A task, as a YAML file describes it: where its records lie, how a record becomes a question, what may be answered.

A template's ``{key}`` is replaced by that value of the record (``{a.b}``: of a mapping in it), ``{label}`` by the words
of a label. ``fewclue.yaml`` holds the nine tasks of FewCLUE; your own file has the same form.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from kexue_train.downstream.evaluate.config import MASK
from kexue_train.downstream.task_files import TaskEntry, choose_tasks, is_task_file, read_catalogue
from kexue_train.foundation.config import Config
from kexue_train.foundation.errors import ConfigError

LABEL = "{label}"


class MaskedPattern(Config):
    """How a masked language model is asked: which words are most probable at the blank."""

    text: str
    """Template with one ``blank``."""
    blank: str = Field(default=MASK, min_length=1)
    """What stands for the masked words."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Label -> its words, for all labels equally many tokens; by default those of the task."""


class FewShot(Config):
    """What the task is learnt from, where a few records with answers are to be learnt (``kexue finetune nsp``)."""

    train: str
    """JSON Lines file to learn from; ``{split}`` is replaced by the name of one of several splits."""
    dev: str
    """JSON Lines file that chooses the epoch; ``{split}`` as above."""
    published: dict[str, float] = Field(default_factory=dict)
    """Accuracies from elsewhere, learnt from a few records, in percent, for comparison."""


class ZeroShotTask(Config):
    """One labelled data set and how it is asked without training."""

    title: str
    """What is asked, in a few words."""
    test: str
    """JSON Lines file with the answers, relative to the folder of the data."""
    dev: str | None = None
    """JSON Lines file whose scores give the thresholds of samples-contrast; its answers are not read."""
    answer: str = "label"
    """Key of the right label; with ``candidates``, of its index."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Label -> its words; with samples-contrast in the order of relatedness, the least related first."""
    labels_file: str | None = None
    """Instead: text file with one label per line, which is its own words."""
    candidates: str | None = None
    """Instead: key of a list in each record, the words of its own labels."""
    text: str
    """Template of the text."""
    prompt: str
    """Template of the other sentence."""
    order: Literal["prefix", "suffix"] = "prefix"
    """Which comes first: the prompt (prefix) or the text (suffix)."""
    contrast: Literal["candidates", "samples"] = "candidates"
    """What is compared: the prompts of all labels for one text, or the one prompt of all texts."""
    blank: str | None = None
    """Soft positions: what stands in the text for the prompt, whose tokens get the positions of that place."""
    pet: MaskedPattern | None = None
    """The same question for a masked language model."""
    published: dict[str, float] = Field(default_factory=dict)
    """Accuracies from elsewhere, in percent, for comparison."""
    few_shot: FewShot | None = None
    """Records to learn from; never read when the task is answered without training."""

    @field_validator("text")
    @classmethod
    def _hides_the_answer(cls, value: str) -> str:
        if LABEL in value:
            raise ValueError(f"{LABEL} belongs in the prompt; the text is the same for all labels")
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        sources = [name for name in ("labels", "labels_file", "candidates") if getattr(self, name)]
        if len(sources) != 1:
            raise ValueError(
                f"give one of labels, labels_file and candidates; found {', '.join(sources) or 'none of them'}"
            )
        if self.labels and len(self.labels) < 2:
            raise ValueError(f"labels holds only {next(iter(self.labels))!r}; a choice needs at least two")
        if self.contrast == "candidates" and LABEL not in self.prompt:
            raise ValueError(f"the prompt {self.prompt!r} holds no {LABEL}, so it is the same for all labels; add it")
        if self.contrast == "samples" and (LABEL in self.prompt or not self.labels):
            raise ValueError(
                f"with contrast: samples there is one prompt per record, without {LABEL}, and labels are listed in "
                "the order of relatedness"
            )
        if self.pet and self.pet.labels and self.labels and self.pet.labels.keys() != self.labels.keys():
            odd = sorted(self.pet.labels.keys() ^ self.labels.keys())
            raise ValueError(f"pet.labels and labels differ in {', '.join(odd[:5])}; both need the same labels")
        return self


def load_zero_shot_tasks(chosen: Sequence[str] = ()) -> dict[str, ZeroShotTask]:
    """Return the chosen tasks, each the name of a FewCLUE task or the path of a YAML file; by default FewCLUE's nine.

    Raises:
        ConfigError: If a name is not known, a file cannot be read, or a task in it is wrong: by line and key.
    """
    known = read_catalogue(__package__, "fewclue.yaml", _parse)
    return choose_tasks(chosen, known, _parse) or known


def input_files(chosen: Sequence[str], data: Path) -> list[Path]:
    """Return all files that the chosen tasks are made of, and those that they read from the folder ``data``.

    Raises:
        ConfigError: As ``load_zero_shot_tasks``.
    """
    named = (name for task in load_zero_shot_tasks(chosen).values() for name in (task.test, task.dev, task.labels_file))
    own = [Path(name) for name in chosen if is_task_file(name)]
    return [*own, *(data / name for name in named if name)]


def _parse(entry: TaskEntry) -> ZeroShotTask:
    if not isinstance(entry.values, dict):
        raise ConfigError(f"{entry.line} is not a task; expected keys such as test: and text:")
    return ZeroShotTask.parse(entry.values, where=entry.where, lines=entry.lines)
