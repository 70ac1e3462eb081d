"""The records of the mixed tasks, checked one by one: what is wrong with any of them is told together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from kexue_train.downstream.finetune.tasks.choice import read_label
from kexue_train.downstream.finetune.tasks.classification import number_labels, text_of
from kexue_train.downstream.finetune.tasks.reading import read_question
from kexue_train.downstream.finetune.tasks.splits import Splits, read_splits
from kexue_train.downstream.finetune.tasks.tagging import read_marked
from kexue_train.downstream.finetune.tasks.task import (
    ChoiceTask,
    ClassificationTask,
    ReadingTask,
    SupervisedTask,
    TaggingTask,
)
from kexue_train.downstream.task_files import Record, fill_template
from kexue_train.foundation.errors import EvaluationError, KexueError
from kexue_train.supervised.config import SupervisedConfig

_SHOWN = 3


class TaskRecords(NamedTuple):
    """The records of one task."""

    name: str
    task: SupervisedTask
    splits: Splits


def read_all(config: SupervisedConfig, tasks: Mapping[str, SupervisedTask]) -> list[TaskRecords]:
    """Return the records of all tasks.

    Raises:
        EvaluationError: Tells the faults of all tasks together, of each the first few and how many there are.
    """
    if not config.data.is_dir():
        raise EvaluationError(
            f"supervised.data={config.data}: no such folder; give the one that the tasks' paths start from"
        )
    found, faults = [], []
    for name, task in tasks.items():
        try:
            records = TaskRecords(name, task, read_task_records(task, config))
        except KexueError as error:
            faults.append(f"{name}: {error}")
            continue
        if of_task := list(_faults_of(records)):
            more = f" (and {len(of_task) - _SHOWN} more)" if len(of_task) > _SHOWN else ""
            faults.append(f"{name}: {'; '.join(of_task[:_SHOWN])}{more}")
        found.append(records)
    if faults:
        raise EvaluationError("supervised: records cannot be used. " + "\n".join(faults))
    return found


def read_task_records(task: SupervisedTask, config: SupervisedConfig) -> Splits:
    """Read the files of one task."""
    return read_splits(
        task,
        config.data,
        lambda record: "\0".join(texts_of(task, record)),
        max_train=config.max_train,
        max_eval=config.max_heldout,
    )


def texts_of(task: SupervisedTask, record: Record) -> tuple[str, ...]:
    """Return the texts of a record, which records on the same text share; without questions and options.

    Raises:
        EvaluationError: If the record lacks a value.
    """
    match task:
        case ClassificationTask():
            return text_of(task, record)
        case TaggingTask():
            return (read_marked(task, record).text,)
        case ReadingTask():
            return (record.text(task.context),)
        case ChoiceTask():
            return (fill_template(task.context, record),)
    raise TypeError(f"unsupported type of task: {type(task).__name__}")


def _faults_of(found: TaskRecords) -> Iterator[str]:
    """Yield what is wrong with the records of a task, and with all of them together."""
    task, splits = found.task, found.splits
    try:
        check = _check_of(task, splits.all_train)
    except EvaluationError as error:
        yield str(error)
        return
    for records in splits.by_name.values():
        for record in records:
            try:
                texts = texts_of(task, record)
                check(record)
            except EvaluationError as error:
                yield str(error)
                continue
            if not any(text.strip() for text in texts):
                yield f"{record.where}: the text is empty"


def _check_of(task: SupervisedTask, records: Sequence[Record]) -> Callable[[Record], object]:
    """Return what raises an ``EvaluationError`` on a record with a wrong label, given all to learn from."""
    match task:
        case ClassificationTask():
            names = list(task.labels) or sorted({record.text(task.label) for record in records})
            if len(names) < 2:
                raise EvaluationError(
                    f"{task.train}: every record has the label {names[0]!r}; a choice needs two labels"
                )
            return lambda record: number_labels(task, [record], names)
        case TaggingTask():
            types = _types_of(task, records)
            return lambda record: _require_types(task, record, types)
        case ReadingTask():
            return lambda record: _require_span(task, record)
        case ChoiceTask():
            return lambda record: (read_label(task, record), fill_template(task.question, record))
    raise TypeError(f"unsupported type of task: {type(task).__name__}")


def _types_of(task: TaggingTask, records: Sequence[Record]) -> set[str]:
    types: set[str] = set()
    for record in records:
        try:
            types |= {entity.type for entity in read_marked(task, record).entities}
        except EvaluationError:
            continue  # told when the record itself is checked
    if not types:
        raise EvaluationError(f"{task.train}: holds no entity, so there is nothing to learn; check the keys")
    return types


def _require_types(task: TaggingTask, record: Record, types: set[str]) -> None:
    for entity in read_marked(task, record).entities:
        if entity.type not in types:
            raise EvaluationError(
                f"{record.where}: the type {entity.type!r} is not known; the training set has "
                f"{', '.join(sorted(types))}"
            )


def _require_span(task: ReadingTask, record: Record) -> None:
    """Refuse an answer that begins outside of the text.

    One that is elsewhere in it is found; one that is not in it, for which sets have the start -1, is counted later.
    """
    context = read_question(task, record).context
    for answer in record.value(task.answers):
        start = int(answer["start"])
        if not -1 <= start < len(context) and str(answer["text"]) not in context:
            raise EvaluationError(
                f"{record.where}: the answer at {start} is not inside the text of {len(context)} characters; correct it"
            )
