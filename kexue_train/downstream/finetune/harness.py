"""Train an exported encoder on supervised tasks, several seeds each, compared with a random encoder and baselines.

A task that fails is reported next to the others, and so is a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue_train.downstream.finetune.dropout import dropout_settings, require_dropout
from kexue_train.downstream.finetune.loop import train_seed
from kexue_train.downstream.finetune.rdrop import WithRDrop
from kexue_train.downstream.finetune.tasks.choice import ChoiceProblem
from kexue_train.downstream.finetune.tasks.classification import ClassificationProblem, text_of
from kexue_train.downstream.finetune.tasks.problem import Problem
from kexue_train.downstream.finetune.tasks.reading import ReadingProblem
from kexue_train.downstream.finetune.tasks.similarity import PairSimilarityProblem
from kexue_train.downstream.finetune.tasks.splits import Splits, read_splits
from kexue_train.downstream.finetune.tasks.tagging import TaggingProblem, read_marked
from kexue_train.downstream.finetune.tasks.task import (
    ChoiceTask,
    ClassificationTask,
    ReadingTask,
    SimilarityTask,
    SupervisedTask,
    TaggingTask,
)
from kexue_train.downstream.load_model import (
    load_encoder,
    load_with_head,
    refuse_other_contents,
    save_encoder,
    with_fresh_weights,
)
from kexue_train.downstream.results.fine_tuning import (
    Baseline,
    EncoderKind,
    EncoderResult,
    FineTunedTaskResult,
    FineTuningResults,
    SeedFailure,
)
from kexue_train.downstream.results.result import TASK_ERRORS, reason_of
from kexue_train.downstream.results.training import SeedRun, SplitScores, spreads
from kexue_train.downstream.sequences import Reader
from kexue_train.downstream.settings import FitSettings, HarnessSettings
from kexue_train.downstream.task_files import Record, fill_template
from kexue_train.foundation.errors import EvaluationError
from kexue_train.foundation.progress import SILENT, Progress


def finetune_tasks(
    model_dir: Path,
    data: Path,
    tasks: Mapping[str, SupervisedTask],
    settings: HarnessSettings,
    *,
    save: Path | None = None,
    progress: Progress = SILENT,
) -> FineTuningResults:
    """Train on every task and score.

    Args:
        model_dir: Exported model, or any of transformers with the heads that the tasks need.
        data: Folder that the tasks' paths start from.
        tasks: Name -> task.
        settings: What applies to all.
        save: Receives a folder per task, the pretrained encoder after training with seed 0.
        progress: Receives steps done.

    Raises:
        EvaluationError: If the folder of the data is missing, the model or its tokenizer cannot be loaded, or R-Drop is
            wanted of a model without dropout.
        ResourceError: If transformers is not installed.
    """
    if not data.is_dir():
        raise EvaluationError(f"{data}: no such folder; give the one that holds the tasks' data")
    refuse_other_contents(save / name for name in tasks if save)
    encoder = load_encoder(model_dir, **dropout_settings(model_dir, settings.dropout))
    if settings.rdrop:
        require_dropout(encoder.model, "--rdrop")
    results = []
    for name, task in tasks.items():
        max_length = encoder.fitting(settings.max_length or task.max_length)
        reader = Reader(encoder.tokenizer, max_length, settings.one_segment)
        run = _TaskRun(name, task, model_dir, reader, settings, save / name if save else None, progress)
        results.append(run.run(data))
        progress.note(_in_words(results[-1]))
    return FineTuningResults(
        model_type=encoder.model_type,
        parameters=encoder.parameters,
        seeds=settings.seeds,
        one_segment=settings.one_segment,
        tasks=results,
    )


@dataclass(frozen=True)
class _TaskRun:
    """One task with everything that its trainings share."""

    name: str
    task: SupervisedTask
    model_dir: Path
    reader: Reader
    settings: HarnessSettings
    save: Path | None
    progress: Progress

    @property
    def fit_settings(self) -> FitSettings:
        """How the task is trained: by the settings of all tasks, and its own."""
        return FitSettings(
            lr=self.settings.lr,
            epochs=self.settings.epochs or self.task.epochs,
            batch_size=self.settings.batch_size or self.task.batch_size,
            accumulation_steps=self.task.accumulation_steps,
            gradient_keep=self.settings.gradient_keep,
            keep_rule=self.settings.keep_rule,
            flood_level=self.settings.flood_level,
            dropout=self.settings.dropout,
        )

    def run(self, data: Path) -> FineTunedTaskResult:
        """Read, score the baselines, train every encoder with every seed."""
        about: dict[str, Any] = {"task": self.name, "title": self.task.title, "kind": self.task.kind}
        try:
            problem, splits = make_problem(
                self.task, data, self.reader, max_train=self.settings.max_train, max_eval=self.settings.max_eval
            )
        except TASK_ERRORS as error:
            return FineTunedTaskResult(**about, failures=[SeedFailure(encoder=None, seed=None, error=reason_of(error))])
        baselines, failures = _baselines(problem)
        encoders = []
        for kind in ("pretrained", "random") if self.settings.random_encoder else ("pretrained",):
            runs, failed = self._train_all(problem, splits, kind)
            failures += failed
            encoders += [EncoderResult(encoder=kind, runs=runs, scores=spreads(runs))] if runs else []
        return FineTunedTaskResult(
            **about,
            metric=problem.metric,
            records={"train": len(splits.train), "examples": problem.num_examples}
            | {split: len(records) for split, records in splits.scored.items()},
            is_dev_held_out=splits.is_dev_held_out,
            num_labels=problem.num_labels,
            max_length=self.reader.max_length,
            cut=self.reader.num_cut,
            unknown_rate=self.reader.unknown_rate,
            fit=self.fit_settings,
            rdrop=self.settings.rdrop,
            baselines=baselines,
            encoders=encoders,
            failures=failures,
        )

    def _train_all(
        self, problem: Problem, splits: Splits, kind: EncoderKind
    ) -> tuple[list[SeedRun], list[SeedFailure]]:
        runs, failures = [], []
        for seed in range(self.settings.seeds):
            try:
                runs.append(self._train(problem, splits, kind, seed))
            except TASK_ERRORS as error:
                failures.append(SeedFailure(encoder=kind, seed=seed, error=reason_of(error)))
        return runs, failures

    def _train(self, problem: Problem, splits: Splits, kind: EncoderKind, seed: int) -> SeedRun:
        changed = dropout_settings(self.model_dir, self.settings.dropout)
        model = load_with_head(self.model_dir, problem.auto_class, problem.num_labels, seed=seed, **changed)
        if kind == "random":
            model = with_fresh_weights(model, seed=seed)
        unit = f"steps of {self.name}, {kind} encoder, seed {seed}"
        run = train_seed(
            model,
            WithRDrop(problem, self.settings.rdrop) if self.settings.rdrop else problem,
            self.fit_settings,
            splits.scored,
            seed=seed,
            on_step=lambda done, total: self.progress.update(done, total, unit),
        )
        if self.save is not None and (kind, seed) == ("pretrained", 0):
            save_encoder(model, self.reader.tokenizer, self.save, problem.label_names)
        return run


def _baselines(problem: Problem) -> tuple[list[Baseline], list[SeedFailure]]:
    found = [Baseline(name=name, scores=dict(scores)) for name, scores in problem.baselines().items()]
    try:
        words = problem.bag_of_words()
    except TASK_ERRORS as error:
        return found, [SeedFailure(encoder=None, seed=None, error=f"no bag of words: {reason_of(error)}")]
    if words is not None:
        scores: SplitScores = words.scores  # type: ignore[assignment]  # its keys are splits
        found.append(Baseline(name="bag_of_words", scores=scores, penalty=words.penalty))
    return found, []


def _in_words(result: FineTunedTaskResult) -> str:
    found = [
        f"{encoder.encoder} {encoder.scores[result.split][str(result.metric)].text}" for encoder in result.encoders
    ]
    failed = [f"{failure.encoder or 'task'} failed: {failure.error}" for failure in result.failures]
    return f"{result.task}: " + "; ".join([*found, *failed])


def make_problem(
    task: SupervisedTask, data: Path, reader: Reader, *, max_train: int | None = None, max_eval: int | None = None
) -> tuple[Problem, Splits]:
    """Read the files of ``task`` and bring them into the tokens of ``reader``'s model.

    Raises:
        EvaluationError: If a file or a record in it cannot be used.
    """
    splits = read_splits(task, data, lambda record: _text_of(task, record), max_train=max_train, max_eval=max_eval)
    match task:
        case ClassificationTask():
            return ClassificationProblem.make(task, splits, reader), splits
        case TaggingTask():
            return TaggingProblem.make(task, splits, reader), splits
        case ReadingTask():
            return ReadingProblem.make(task, splits, reader), splits
        case ChoiceTask():
            return ChoiceProblem.make(task, splits, reader), splits
        case SimilarityTask():
            return PairSimilarityProblem.make(task, splits, reader), splits
    raise TypeError(f"unsupported type of task: {type(task).__name__}")


def _text_of(task: SupervisedTask, record: Record) -> str:
    """Return what records that belong together have in common: a text and all questions on it."""
    match task:
        case ClassificationTask() | SimilarityTask():
            return "\0".join(text_of(task, record))
        case TaggingTask():
            return read_marked(task, record).text
        case ReadingTask():
            return record.text(task.context)
        case ChoiceTask():
            return fill_template(task.context, record)
    raise TypeError(f"unsupported type of task: {type(task).__name__}")
