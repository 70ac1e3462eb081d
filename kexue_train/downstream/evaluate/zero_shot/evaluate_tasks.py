"""Answer tasks with a model by one method or both; a task that fails is reported next to the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kexue_train.downstream.evaluate.zero_shot.contrast import (
    Labels,
    by_thresholds,
    candidates_contrast,
    find_thresholds,
    samples_contrast,
)
from kexue_train.downstream.evaluate.zero_shot.prompt_scores import (
    OnTokens,
    PromptScores,
    score_masked_words,
    score_next_sentences,
)
from kexue_train.downstream.evaluate.zero_shot.questions import (
    Questions,
    find_answers,
    masked_word_questions,
    next_sentence_questions,
    read_labels,
)
from kexue_train.downstream.evaluate.zero_shot.task import ZeroShotTask
from kexue_train.downstream.load_model import LoadedHead, load_masked_lm, load_next_sentence_model
from kexue_train.downstream.results.result import TASK_ERRORS, mean_columns, reason_of
from kexue_train.downstream.results.zero_shot import (
    Decision,
    InputLoss,
    Method,
    MethodFailure,
    ZeroShotResults,
    ZeroShotScore,
    ZeroShotTaskResult,
)
from kexue_train.downstream.settings import PROMPT_LENGTH
from kexue_train.downstream.task_files import Record, read_data_file
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress

_ASSUMPTIONS = {
    "candidates": None,
    "thresholds": "all labels are equally frequent in the dev set, whose texts (not answers) give the thresholds",
    "transductive": "all labels are equally frequent in the test set, whose texts are all there at once",
}


@dataclass(frozen=True)
class TaskData:
    """A task with its test records."""

    task: ZeroShotTask
    folder: Path
    records: list[Record]
    labels: dict[str, str]
    """Label -> its words; empty if each record has candidates of its own."""
    names: list[str]
    answers: Labels
    """(n,) indices into ``names``."""

    @classmethod
    def read(cls, task: ZeroShotTask, folder: Path) -> TaskData:
        """Read the test file and find the right answers.

        Raises:
            EvaluationError: If a file is missing or damaged, or an answer is no known label.
        """
        records, labels = read_data_file(folder / task.test), read_labels(task, folder)
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
    """Answer as NSP-BERT: by candidates-contrast, or by samples-contrast with both kinds of cuts.

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
    """Answer as PET: with the label whose words are the most probable at the blank.

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
    records = read_data_file(path)
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


_LOAD = {"nsp": load_next_sentence_model, "pet": load_masked_lm}


def evaluate_zero_shot(
    model_dir: Path,
    data: Path,
    tasks: Mapping[str, ZeroShotTask],
    *,
    methods: Sequence[Method] = ("nsp", "pet"),
    max_length: int = PROMPT_LENGTH,
    progress: Progress = SILENT,
) -> ZeroShotResults:
    """Answer every task with every method.

    Args:
        model_dir: Exported model, or any that ``AutoModelForNextSentencePrediction`` (``AutoModelForMaskedLM``) opens.
        data: Folder that the tasks' paths start from.
        tasks: Name -> task.
        methods: Which heads to ask.
        max_length: Tokens of a sequence, never more than the model was made for.
        progress: Receives tokens done.

    Raises:
        EvaluationError: If the folder of the data is missing, or the model cannot be loaded or lacks a head.
    """
    if not data.is_dir():
        raise EvaluationError(f"{data}: no such folder; give the one that holds the tasks' data, such as FewCLUE's")
    heads = {method: _LOAD[method](model_dir) for method in methods}
    max_length = min(head.fitting(max_length) for head in heads.values())
    results = []
    for name, task in tasks.items():
        results.append(_evaluate(name, task, data, heads, max_length, progress))
        progress.note(_in_words(results[-1]))
    loaded = next(iter(heads.values()))
    return ZeroShotResults(
        model_type=loaded.model_type,
        parameters=loaded.parameters,
        max_length=max_length,
        tasks=results,
        means=mean_accuracies(results),
    )


def _evaluate(
    name: str, task: ZeroShotTask, folder: Path, heads: Mapping[Method, LoadedHead], max_length: int, progress: Progress
) -> ZeroShotTaskResult:
    published = {title: percent / 100 for title, percent in task.published.items()}
    scores, readings, failures = [], [], []
    try:
        data = TaskData.read(task, folder)
    except TASK_ERRORS as error:
        failures = [MethodFailure(method=None, error=reason_of(error))]
        return ZeroShotTaskResult(task=name, title=task.title, failures=failures, published=published)
    for method, loaded in heads.items():
        if method == "pet" and task.pet is None:
            continue
        try:
            answers = METHODS[method](data, loaded, max_length, _shown(progress, f"tokens of {name}, {method}"))
        except TASK_ERRORS as error:
            failures.append(MethodFailure(method=method, error=reason_of(error)))
            continue
        scores += answers.scores
        readings.append(answers.loss)
        failures += [MethodFailure(method=method, error=answers.failure)] if answers.failure else []
    counts = np.bincount(data.answers, minlength=len(data.names))
    return ZeroShotTaskResult(
        task=name,
        title=task.title,
        records=len(data.records),
        num_labels=len(data.names),
        chance=data.chance,
        majority=float(counts.max() / counts.sum()),
        answers=dict(zip(data.names, counts.tolist(), strict=True)),
        scores=scores,
        readings=readings,
        failures=failures,
        published=published,
    )


def mean_accuracies(results: Sequence[ZeroShotTaskResult]) -> dict[str, float]:
    """Return the mean of every column that has a value for all tasks.

    The column ``nsp transductive`` is completed by ``nsp`` where a task is not cut into parts; it is left out if no
    task is.
    """
    columns = [result.columns for result in results]
    if any("nsp transductive" in values for values in columns):
        columns = [{"nsp transductive": values["nsp"]} | values if "nsp" in values else values for values in columns]
    return mean_columns(columns)


def _shown(progress: Progress, unit: str) -> OnTokens:
    return lambda done, total: progress.update(done, total, unit)


def _in_words(result: ZeroShotTaskResult) -> str:
    found = [f"{name} {value:.1%}" for name, value in result.own_columns.items()]
    failed = [f"{failure.method or 'task'} failed: {failure.error}" for failure in result.failures]
    return f"{result.task}: " + "; ".join([*found, *failed] or ["nothing to ask this model"])
