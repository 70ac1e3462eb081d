"""Tune a model with an NSP head on a few records of each task, several seeds, and score it before and after.

A task that fails is reported next to the others, and so is a seed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kexue_train.downstream.evaluate.zero_shot.contrast import candidates_contrast
from kexue_train.downstream.evaluate.zero_shot.evaluate_tasks import TaskData, answer_by_next_sentences
from kexue_train.downstream.evaluate.zero_shot.questions import next_sentence_questions
from kexue_train.downstream.evaluate.zero_shot.task import ZeroShotTask
from kexue_train.downstream.finetune.dropout import dropout_settings
from kexue_train.downstream.finetune.loop import train_seed
from kexue_train.downstream.finetune.next_sentences.controls import permute_prompts
from kexue_train.downstream.finetune.next_sentences.problem import Asked, NextSentenceProblem
from kexue_train.downstream.finetune.tasks.splits import choose_records
from kexue_train.downstream.load_model import (
    LoadedHead,
    load_next_sentence_model,
    refuse_other_contents,
    save_encoder,
)
from kexue_train.downstream.results.few_shot import (
    FewShotFailure,
    FewShotResults,
    FewShotTaskResult,
    PermutedScores,
    ZeroShotBefore,
)
from kexue_train.downstream.results.result import TASK_ERRORS, reason_of
from kexue_train.downstream.results.training import SeedRun, Split, spreads
from kexue_train.downstream.results.zero_shot import InputLoss
from kexue_train.downstream.settings import FewShotSettings
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress

_SPLIT, _ALL = "{split}", "few_all"
_SCORED: tuple[Split, ...] = ("dev", "test")


def tune_next_sentences(
    model_dir: Path,
    data: Path,
    tasks: Mapping[str, ZeroShotTask],
    settings: FewShotSettings,
    *,
    save: Path | None = None,
    progress: Progress = SILENT,
) -> FewShotResults:
    """Tune on every task alone and score.

    Args:
        model_dir: Exported model, or any that ``AutoModelForNextSentencePrediction`` opens.
        data: Folder that the tasks' paths start from.
        tasks: Name -> task; each needs ``few_shot``.
        settings: What applies to all.
        save: Receives a folder per task, the model after training with seed 0.
        progress: Receives steps done.

    Raises:
        EvaluationError: If the folder of the data is missing, or the model cannot be loaded or lacks the head.
    """
    if not data.is_dir():
        raise EvaluationError(f"{data}: no such folder; give the one that holds the tasks' data, such as FewCLUE's")
    refuse_other_contents(save / name for name in tasks if save)
    loaded = load_next_sentence_model(model_dir, **dropout_settings(model_dir, settings.fit.dropout))
    max_length = loaded.fitting(settings.max_length)
    results = []
    for name, task in tasks.items():
        run = _TaskRun(name, task, loaded, settings, max_length, save / name if save else None, progress)
        results.append(run.on(data))
        progress.note(_in_words(results[-1]))
    return FewShotResults(
        model_type=loaded.model_type,
        parameters=loaded.parameters,
        max_length=max_length,
        seeds=settings.seeds,
        fit=settings.fit,
        tasks=results,
    )


@dataclass(frozen=True)
class _TaskRun:
    """One task with everything that its trainings share."""

    name: str
    task: ZeroShotTask
    loaded: LoadedHead
    """The model as given; never trained itself."""
    settings: FewShotSettings
    max_length: int
    save: Path | None
    progress: Progress

    def on(self, data: Path) -> FewShotTaskResult:
        """Train and score; what was found before a failure is kept."""
        about: dict[str, Any] = {"task": self.name, "title": self.task.title}
        failures: list[FewShotFailure] = []

        def attempt(what: str, work: Callable[[], Any]) -> Any:
            try:
                return work()
            except TASK_ERRORS as error:
                failures.append(FewShotFailure(what=what, error=reason_of(error)))
                return None

        read = attempt("score", lambda: self._read(data))
        if read is None:
            return FewShotTaskResult(**about, failures=failures)
        test, problem = read
        before = attempt("zero-shot score", lambda: self._before(test, problem))
        runs: list[SeedRun] = []
        permuted = None
        for seed in range(self.settings.seeds):
            trained = attempt(f"seed {seed}", partial(self._train, problem, seed))
            if trained is not None:
                runs.append(trained[0])
                permuted = permuted or attempt("control", partial(_permuted_accuracy, problem, trained[1]))
        counts = np.bincount(test.answers, minlength=len(test.names))
        return FewShotTaskResult(
            **about,
            split=self._split,
            records={split: len(asked.answers) for split, asked in problem.asked.items()},
            num_labels=len(test.names),
            chance=test.chance,
            majority=float(counts.max() / counts.sum()),
            zero_shot=before[0] if before else None,
            cut=before[2].cut if before else 0,
            unknown_rate=before[2].unknown_rate if before else 0.0,
            runs=runs,
            after=spreads(runs),
            permuted=PermutedScores(zero_shot=before[1] if before else None, tuned=permuted),
            published={title: percent / 100 for title, percent in self._few_shot.published.items()},
            published_zero_shot={title: percent / 100 for title, percent in self.task.published.items()},
            failures=failures,
        )

    @property
    def _few_shot(self) -> Any:
        if self.task.few_shot is None:
            raise EvaluationError("the task names no records to learn from; add few_shot: {train: FILE, dev: FILE}")
        return self.task.few_shot

    @property
    def _split(self) -> str | None:
        has_splits = _SPLIT in self._few_shot.train + self._few_shot.dev
        if self.settings.split is not None and not has_splits:
            raise EvaluationError(f"the task has one training file only; leave out --split {self.settings.split}")
        return (self.settings.split or _ALL) if has_splits else None

    def _read(self, data: Path) -> tuple[TaskData, NextSentenceProblem]:
        files = {"train": self._few_shot.train, "dev": self._few_shot.dev, "test": self.task.test}
        found = {
            split: TaskData.read(self.task.model_copy(update={"test": path.replace(_SPLIT, self._split or "")}), data)
            for split, path in files.items()
        }
        found["test"] = self._fewer(found["test"])
        if len(set(found["train"].answers.tolist())) < 2 and self.task.candidates is None:
            only = found["train"].names[int(found["train"].answers[0])]
            raise EvaluationError(
                f"{files['train']}: every record has the label {only!r}; a choice is learnt from at least two labels"
            )
        asked = {
            split: Asked(next_sentence_questions(self.task, entry.records, entry.labels), entry.answers)
            for split, entry in found.items()
        }
        num_labels = len(found["test"].names)
        return found["test"], NextSentenceProblem.make(self.task, self.loaded, num_labels, self.max_length, asked)

    def _fewer(self, test: TaskData) -> TaskData:
        records = choose_records(test.records, self.settings.max_eval)
        answer_of = {id(record): answer for record, answer in zip(test.records, test.answers, strict=True)}
        return replace(test, records=records, answers=np.array([answer_of[id(record)] for record in records]))

    def _before(self, test: TaskData, problem: NextSentenceProblem) -> tuple[ZeroShotBefore, float | None, InputLoss]:
        """Return the score without training, that with permuted prompts if labels are compared, and what was lost."""
        answers = answer_by_next_sentences(test, self.loaded, self.max_length, lambda _done, _total: None)
        best = answers.scores[0]
        before = ZeroShotBefore(decision=best.decision, assumption=best.assumption, accuracy=best.accuracy)
        if self.task.contrast == "samples":
            return before, None, answers.loss  # its cuts would still give every label its share
        found = problem.ask(self.loaded.model, permute_prompts(problem.asked["test"].questions))
        return before, float((candidates_contrast(found.scores) == test.answers).mean()), answers.loss

    def _train(self, problem: NextSentenceProblem, seed: int) -> tuple[SeedRun, Any]:
        model = copy.deepcopy(self.loaded.model)
        unit = f"steps of {self.name}, seed {seed}"
        run = train_seed(
            model,
            problem,
            self.settings.fit,
            _SCORED,
            seed=seed,
            on_step=lambda done, total: self.progress.update(done, total, unit),
        )
        if self.save is not None and seed == 0:
            save_encoder(model, self.loaded.tokenizer, self.save, [])
        return run, model


def _permuted_accuracy(problem: NextSentenceProblem, model: Any) -> float:
    asked = problem.asked["test"]
    return float((problem.answer(problem.ask(model, permute_prompts(asked.questions))) == asked.answers).mean())


def _in_words(result: FewShotTaskResult) -> str:
    found = [f"zero-shot {result.zero_shot.accuracy:.1%}"] if result.zero_shot else []
    found += [f"tuned {result.after['test']['accuracy'].text}"] if result.after else []
    failed = [f"{failure.what} failed: {failure.error}" for failure in result.failures]
    return f"{result.task}: " + "; ".join([*found, *failed])
