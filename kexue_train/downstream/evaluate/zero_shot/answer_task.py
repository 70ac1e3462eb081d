"""One task, one model, one method: labels for all records, and how many are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kexue_train.downstream.evaluate.load_model import LoadedHead
from kexue_train.downstream.evaluate.zero_shot.contrast import (
    Labels,
    by_thresholds,
    candidates_contrast,
    find_thresholds,
    samples_contrast,
)
from kexue_train.downstream.evaluate.zero_shot.next_sentence import OnTokens, PromptScores, score_next_sentences
from kexue_train.downstream.evaluate.zero_shot.pet import score_masked_words
from kexue_train.downstream.evaluate.zero_shot.questions import (
    Questions,
    find_answers,
    find_labels,
    masked_word_questions,
    next_sentence_questions,
)
from kexue_train.downstream.evaluate.zero_shot.records import Record, read_records
from kexue_train.downstream.evaluate.zero_shot.task import Task
from kexue_train.downstream.results.zero_shot import Decision, InputLoss, Method, ZeroShotScore
from kexue_train.foundation.errors import EvaluationError

_ASSUMPTIONS = {
    "candidates": None,
    "thresholds": "all labels are equally frequent in the dev set, whose texts (not answers) give the thresholds",
    "transductive": "all labels are equally frequent in the test set, whose texts are all there at once",
}


@dataclass(frozen=True)
class TaskData:
    """A task with its test records."""

    task: Task
    folder: Path
    records: list[Record]
    labels: dict[str, str]
    """Label -> its words; empty if each record has candidates of its own."""
    names: list[str]
    answers: Labels
    """(n,) places in ``names``."""

    @classmethod
    def read(cls, task: Task, folder: Path) -> TaskData:
        """Read the test file and find the right answers.

        Raises:
            EvaluationError: If a file is missing or damaged, or an answer is no known label.
        """
        records, labels = read_records(folder / task.test), find_labels(task, folder)
        return cls(task, folder, records, labels, *find_answers(task, records, labels))

    @property
    def chance(self) -> float:
        """Expected accuracy of guessing among a record's own candidates."""
        if self.task.candidates is None:
            return 1 / len(self.names)
        return float(np.mean([1 / len(record.texts(self.task.candidates)) for record in self.records]))

    def score(self, method: Method, decision: Decision, labels: Labels) -> ZeroShotScore:
        """Compare ``labels`` (n,) with the answers."""
        accuracy = float((labels == self.answers).mean())
        counts = np.bincount(labels, minlength=len(self.names)).tolist()
        return ZeroShotScore(
            method=method,
            decision=decision,
            assumption=_ASSUMPTIONS[decision],
            accuracy=accuracy,
            standard_error=float(np.sqrt(accuracy * (1 - accuracy) / len(labels))),
            predicted=dict(zip(self.names, counts, strict=True)),
        )


@dataclass(frozen=True)
class Answers:
    """What one method made of a task."""

    scores: list[ZeroShotScore]
    loss: InputLoss
    failure: str | None = None
    """Why a score is missing."""


def answer_by_next_sentences(data: TaskData, loaded: LoadedHead, max_length: int, on_tokens: OnTokens) -> Answers:
    """NSP-BERT: by candidates-contrast, or by samples-contrast with both kinds of cuts.

    Raises:
        EvaluationError: If a record lacks a value, or a score is not finite.
    """
    task = data.task
    questions, found = _ask(data, data.records, loaded, max_length, on_tokens)
    loss = InputLoss(method="nsp", cut=found.num_cut, unknown_rate=found.unknown_rate)
    if task.contrast == "candidates":
        return Answers([data.score("nsp", "candidates", candidates_contrast(found.scores))], loss)
    scores = found.scores[:, 0]
    cut_here = samples_contrast(scores, len(data.names), _names(questions))
    transductive = data.score("nsp", "transductive", cut_here)
    try:
        thresholds = _dev_thresholds(data, loaded, max_length)
    except EvaluationError as error:
        return Answers([transductive], loss, f"no thresholds: {error}")
    return Answers([data.score("nsp", "thresholds", by_thresholds(scores, thresholds)), transductive], loss)


def answer_by_masked_words(data: TaskData, loaded: LoadedHead, max_length: int, on_tokens: OnTokens) -> Answers:
    """PET: the label whose words are the most probable at the blank.

    Raises:
        EvaluationError: If labels lack words or their words differ in size, or a score is not finite.
    """
    questions = masked_word_questions(data.task, data.records, data.labels)
    found = score_masked_words(loaded, questions, max_length=max_length, on_tokens=on_tokens)
    loss = InputLoss(method="pet", cut=found.num_cut, unknown_rate=found.unknown_rate)
    return Answers([data.score("pet", "candidates", candidates_contrast(found.scores))], loss)


def _dev_thresholds(data: TaskData, loaded: LoadedHead, max_length: int) -> np.ndarray:
    if data.task.dev is None:
        raise EvaluationError("the task names no dev file")
    path = data.folder / data.task.dev
    records = read_records(path)
    if len(records) < len(data.names):
        raise EvaluationError(f"{path}: {len(records)} records cannot be cut into {len(data.names)} parts; give more")
    _, found = _ask(data, records, loaded, max_length, lambda _done, _total: None)
    return find_thresholds(found.scores[:, 0], len(data.names))


def _ask(
    data: TaskData, records: list[Record], loaded: LoadedHead, max_length: int, on_tokens: OnTokens
) -> tuple[Questions, PromptScores]:
    task = data.task
    questions = next_sentence_questions(task, records, data.labels)
    found = score_next_sentences(
        loaded,
        questions,
        order=task.order,
        has_blank=task.blank is not None,
        max_length=max_length,
        on_tokens=on_tokens,
    )
    return questions, found


def _names(questions: Questions) -> list[str]:
    return [
        "\0".join((*text, questions.prompts[prompts[0]]))
        for text, prompts in zip(questions.texts, questions.prompt_of, strict=True)
    ]


METHODS: dict[Method, Callable[[TaskData, LoadedHead, int, OnTokens], Answers]] = {
    "nsp": answer_by_next_sentences,
    "pet": answer_by_masked_words,
}
