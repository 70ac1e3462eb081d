"""A task and its records -> questions: every text with the prompts to be compared, and the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kexue_train.downstream.evaluate.zero_shot.task import LABEL, ZeroShotTask
from kexue_train.downstream.task_files import Record, Text, fill_template, fill_text, template_fields
from kexue_train.foundation.errors import EvaluationError

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Questions:
    """n texts and the prompts of each."""

    texts: list[Text]
    prompts: list[str]
    """Distinct ones."""
    prompt_of: Indices
    """(n, K) indices into ``prompts``; -1 where a record has fewer than K."""


def read_labels(task: ZeroShotTask, data: Path) -> dict[str, str]:
    """Return label -> its words, in order; empty if every record has its own candidates.

    Raises:
        EvaluationError: If the file of labels is missing or holds fewer than two.
    """
    if task.labels_file is None:
        return task.labels
    path = data / task.labels_file
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"{path}: the file of labels cannot be read ({error}); give the folder that the data's paths start from"
        ) from None
    labels = {line.strip(): line.strip() for line in lines if line.strip()}
    if len(labels) < 2:
        raise EvaluationError(f"{path}: holds {len(labels)} labels; expected one per line, at least two")
    return labels


def find_answers(task: ZeroShotTask, records: Sequence[Record], labels: dict[str, str]) -> tuple[list[str], Indices]:
    """Return the names of the labels, and which one is right in every record: (n,).

    Raises:
        EvaluationError: If a record has no answer, or one that is not among the labels.
    """
    if not task.candidates:
        names = list(labels)
        indices = {name: index for index, name in enumerate(names)}
        found = [indices.get(record.text(task.answer), -1) for record in records]
        _require_known(found, records, task.answer, f"the labels are {_listed(names)}")
        return names, np.array(found, np.int64)
    sizes = [len(record.texts(task.candidates)) for record in records]
    names = [str(index) for index in range(max(sizes))]
    found = [
        names.index(answer) if (answer := record.text(task.answer)) in names[:size] else -1
        for record, size in zip(records, sizes, strict=True)
    ]
    _require_known(found, records, task.answer, f"expected an index into '{task.candidates}', counted from 0")
    return names, np.array(found, np.int64)


def next_sentence_questions(task: ZeroShotTask, records: Sequence[Record], labels: dict[str, str]) -> Questions:
    """Return questions with a prompt per label (candidates-contrast) or per record (samples-contrast).

    Raises:
        EvaluationError: If a record lacks what the templates ask for.
    """
    texts = [fill_text(task.text, record, task.blank) for record in records]
    if task.contrast == "samples":
        return _collect(texts, [[fill_template(task.prompt, record)] for record in records])
    return _collect(texts, _prompts(task.prompt, task, records, list(labels.values())))


def masked_word_questions(task: ZeroShotTask, records: Sequence[Record], labels: dict[str, str]) -> Questions:
    """Return questions with the words of every label as prompts, for the blank of ``task.pet``.

    Raises:
        EvaluationError: If the task has no such pattern, a label lacks words, or a record lacks a value.
    """
    assert task.pet is not None  # who asks has looked
    texts = [fill_text(task.pet.text, record, task.pet.blank) for record in records]
    words = task.pet.labels or labels
    if missing := [name for name in labels if name not in words]:
        raise EvaluationError(f"pet.labels has no words for {_listed(missing)}; add them")
    return _collect(texts, _prompts(LABEL, task, records, [words[name] for name in labels]))


def _prompts(template: str, task: ZeroShotTask, records: Sequence[Record], words: list[str]) -> list[list[str]]:
    if task.candidates:
        return [[fill_template(template, record, word) for word in record.texts(task.candidates)] for record in records]
    if template_fields(template) == {"label"}:
        return [[fill_template(template, records[0], word) for word in words]] * len(records)
    return [[fill_template(template, record, word) for word in words] for record in records]


def _collect(texts: list[Text], prompts: list[list[str]]) -> Questions:
    indices: dict[str, int] = {}
    prompt_of = np.full((len(prompts), max(map(len, prompts))), -1, np.int64)
    for row, of_record in zip(prompt_of, prompts, strict=True):
        row[: len(of_record)] = [indices.setdefault(prompt, len(indices)) for prompt in of_record]
    return Questions(texts, list(indices), prompt_of)


def _require_known(found: list[int], records: Sequence[Record], key: str, allowed: str) -> None:
    if -1 in found:
        record = records[found.index(-1)]
        raise EvaluationError(
            f"{record.where}: {key}={record.text(key)!r} is not a known label (in {found.count(-1)} records the "
            f"label is unknown); {allowed}: complete the task's labels, or correct the record"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if names[8:] else ""
    return ", ".join(names[:8]) + more
