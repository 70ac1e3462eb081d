"""Run tasks through a model; one that fails is reported beside the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kexue_train.downstream.evaluate.load_model import LoadedHead, load_masked_lm, load_next_sentence_model
from kexue_train.downstream.evaluate.zero_shot.answer_task import METHODS, TaskData
from kexue_train.downstream.evaluate.zero_shot.next_sentence import OnTokens
from kexue_train.downstream.evaluate.zero_shot.task import Task
from kexue_train.downstream.results.zero_shot import Method, MethodFailure, ZeroShotResults, ZeroShotTaskResult
from kexue_train.downstream.settings import PROMPT_LENGTH
from kexue_train.foundation.errors import EvaluationError, KexueError
from kexue_train.foundation.progress import SILENT, Progress

_LOAD = {"nsp": load_next_sentence_model, "pet": load_masked_lm}
# What may go wrong in one task alone; the second is also how PyTorch says that a device has too little memory.
_TASK_ERRORS = (KexueError, RuntimeError, MemoryError)


def evaluate_zero_shot(
    model_dir: Path,
    data: Path,
    tasks: Mapping[str, Task],
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
    max_length = min(max_length, *(head.longest_input or max_length for head in heads.values()))
    results = []
    for name, task in tasks.items():
        results.append(_evaluate(name, task, data, heads, max_length, progress))
        progress.note(_in_words(results[-1]))
    model = next(iter(heads.values())).model
    return ZeroShotResults(
        model_type=str(model.config.model_type),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        max_length=max_length,
        tasks=results,
        means=mean_accuracies(results),
    )


def _evaluate(
    name: str, task: Task, folder: Path, heads: Mapping[Method, LoadedHead], max_length: int, progress: Progress
) -> ZeroShotTaskResult:
    published = {title: percent / 100 for title, percent in task.published.items()}
    scores, readings, failures = [], [], []
    try:
        data = TaskData.read(task, folder)
    except _TASK_ERRORS as error:
        failures = [MethodFailure(method=None, error=_first_words(error))]
        return ZeroShotTaskResult(task=name, title=task.title, failures=failures, published=published)
    for method, loaded in heads.items():
        if method == "pet" and task.pet is None:
            continue
        try:
            answers = METHODS[method](data, loaded, max_length, _shown(progress, f"tokens of {name}, {method}"))
        except _TASK_ERRORS as error:
            failures.append(MethodFailure(method=method, error=_first_words(error)))
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
    """Mean of every column that has a value for all tasks.

    The column ``nsp transductive`` is completed by ``nsp`` where a task is not cut into parts; it is left out if no
    task is.
    """
    columns = [result.columns for result in results]
    if any("nsp transductive" in values for values in columns):
        columns = [{"nsp transductive": values["nsp"]} | values if "nsp" in values else values for values in columns]
    names = [name for name in columns[0] if all(name in values for values in columns)]
    return {name: float(np.mean([values[name] for values in columns])) for name in names}


def _shown(progress: Progress, unit: str) -> OnTokens:
    return lambda done, total: progress.update(done, total, unit)


def _in_words(result: ZeroShotTaskResult) -> str:
    found = [f"{name} {value:.1%}" for name, value in result.own_columns.items()]
    failed = [f"{failure.method or 'task'} failed: {failure.error}" for failure in result.failures]
    return f"{result.task}: " + "; ".join([*found, *failed] or ["nothing to ask this model"])


def _first_words(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
