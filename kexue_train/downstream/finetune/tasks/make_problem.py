"""A task and the folder of its data -> the problem that its kind makes of it."""

from __future__ import annotations

from pathlib import Path

from kexue_train.downstream.evaluate.zero_shot.records import Record, fill
from kexue_train.downstream.finetune.tasks.choice import Choice
from kexue_train.downstream.finetune.tasks.classification import Classification, text_of
from kexue_train.downstream.finetune.tasks.inputs import Reader
from kexue_train.downstream.finetune.tasks.problem import Problem
from kexue_train.downstream.finetune.tasks.reading import Reading
from kexue_train.downstream.finetune.tasks.splits import Splits, read_splits
from kexue_train.downstream.finetune.tasks.tagging import Tagging, read_marked
from kexue_train.downstream.finetune.tasks.task import ChoiceTask, ClassificationTask, ReadingTask, TaggingTask, Task


def make_problem(
    task: Task, data: Path, reader: Reader, *, max_train: int | None = None, max_eval: int | None = None
) -> tuple[Problem, Splits]:
    """Read the files of ``task`` and bring them into the tokens of ``reader``'s model.

    Raises:
        EvaluationError: If a file or a record in it cannot be used.
    """
    splits = read_splits(task, data, lambda record: _text_of(task, record), max_train=max_train, max_eval=max_eval)
    match task:
        case ClassificationTask():
            return Classification.make(task, splits, reader), splits
        case TaggingTask():
            return Tagging.make(task, splits, reader), splits
        case ReadingTask():
            return Reading.make(task, splits, reader), splits
        case ChoiceTask():
            return Choice.make(task, splits, reader), splits
    raise TypeError(f"no problem is made of a {type(task).__name__}")


def _text_of(task: Task, record: Record) -> str:
    """What records that belong together have in common: a text and all questions on it."""
    match task:
        case ClassificationTask():
            return "\0".join(text_of(task, record))
        case TaggingTask():
            return read_marked(task, record).text
        case ReadingTask():
            return record.text(task.context)
        case ChoiceTask():
            return fill(task.context, record)
    raise TypeError(f"no text is known of a {type(task).__name__}")
