"""Train an exported encoder on supervised tasks, several seeds each, beside a random encoder and baselines.

A task that fails is reported beside the others, and so is a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue_train.downstream.evaluate.load_model import load_encoder
from kexue_train.downstream.finetune.loop import fit
from kexue_train.downstream.finetune.tasks.encoders import load_with_head, save_encoder, with_fresh_weights
from kexue_train.downstream.finetune.tasks.inputs import Reader
from kexue_train.downstream.finetune.tasks.make_problem import make_problem
from kexue_train.downstream.finetune.tasks.problem import Problem
from kexue_train.downstream.finetune.tasks.splits import Splits
from kexue_train.downstream.finetune.tasks.task import Task
from kexue_train.downstream.results.fine_tuning import (
    Baseline,
    EncoderKind,
    EncoderResult,
    FineTunedTaskResult,
    FineTuningResults,
    SeedFailure,
)
from kexue_train.downstream.results.training import SeedRun, spreads
from kexue_train.downstream.settings import FitSettings, HarnessSettings
from kexue_train.foundation.errors import EvaluationError, KexueError
from kexue_train.foundation.progress import SILENT, Progress

# What may go wrong in one task alone; the second is also how PyTorch says that a device has too little memory.
_TASK_ERRORS = (KexueError, RuntimeError, MemoryError)


def finetune_tasks(
    model_dir: Path,
    data: Path,
    tasks: Mapping[str, Task],
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
        EvaluationError: If the folder of the data is missing, or the model or its tokenizer cannot be loaded.
        ResourceError: If transformers is not installed.
    """
    if not data.is_dir():
        raise EvaluationError(f"{data}: no such folder; give the one that holds the tasks' data")
    encoder = load_encoder(model_dir)
    results = []
    for name, task in tasks.items():
        wanted = settings.max_length or task.max_length
        reader = Reader(encoder.tokenizer, min(wanted, encoder.longest_input or wanted), settings.one_segment)
        run = _TaskRun(name, task, model_dir, reader, settings, save / name if save else None, progress)
        results.append(run.run(data))
        progress.note(_in_words(results[-1]))
    return FineTuningResults(
        model_type=str(encoder.model.config.model_type),
        parameters=sum(parameter.numel() for parameter in encoder.model.parameters()),
        seeds=settings.seeds,
        one_segment=settings.one_segment,
        tasks=results,
    )


@dataclass(frozen=True)
class _TaskRun:
    """One task with everything that its trainings share."""

    name: str
    task: Task
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
            flood_level=self.settings.flood_level,
        )

    def run(self, data: Path) -> FineTunedTaskResult:
        """Read, score the baselines, train every encoder with every seed."""
        about: dict[str, Any] = {"task": self.name, "title": self.task.title, "kind": self.task.kind}
        try:
            problem, splits = make_problem(
                self.task, data, self.reader, max_train=self.settings.max_train, max_eval=self.settings.max_eval
            )
        except _TASK_ERRORS as error:
            return FineTunedTaskResult(
                **about, failures=[SeedFailure(encoder=None, seed=None, error=_first_words(error))]
            )
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
            except _TASK_ERRORS as error:
                failures.append(SeedFailure(encoder=kind, seed=seed, error=_first_words(error)))
        return runs, failures

    def _train(self, problem: Problem, splits: Splits, kind: EncoderKind, seed: int) -> SeedRun:
        model = load_with_head(self.model_dir, problem.auto_class, problem.num_labels, seed=seed)
        if kind == "random":
            model = with_fresh_weights(model, seed=seed)
        unit = f"steps of {self.name}, {kind} encoder, seed {seed}"
        found = fit(
            model,
            problem.num_examples,
            lambda places: problem.loss(model, places),
            self.fit_settings,
            seed=seed,
            score=lambda: problem.score(model, "dev")[problem.metric],
            on_step=lambda done, total: self.progress.update(done, total, unit),
        )
        if self.save is not None and (kind, seed) == ("pretrained", 0):
            save_encoder(model, self.reader.tokenizer, self.save, problem.label_names)
        return SeedRun(
            seed=seed,
            best_epoch=found.best_epoch,
            losses=found.losses,
            dev_by_epoch=found.scores,
            scores={split: problem.score(model, split) for split in splits.scored},
        )


def _baselines(problem: Problem) -> tuple[list[Baseline], list[SeedFailure]]:
    found = [Baseline(name=name, scores=dict(scores)) for name, scores in problem.baselines().items()]
    try:
        words = problem.bag_of_words()
    except _TASK_ERRORS as error:
        return found, [SeedFailure(encoder=None, seed=None, error=f"no bag of words: {_first_words(error)}")]
    if words is not None:
        scores = {split: {"accuracy": value} for split, value in words.accuracy.items()}
        found.append(Baseline(name="bag_of_words", scores=scores, penalty=words.penalty))
    return found, []


def _in_words(result: FineTunedTaskResult) -> str:
    found = [
        f"{encoder.encoder} {encoder.scores[result.split][str(result.metric)].mean:.1%}" for encoder in result.encoders
    ]
    failed = [f"{failure.encoder or 'task'} failed: {failure.error}" for failure in result.failures]
    return f"{result.task}: " + "; ".join([*found, *failed])


def _first_words(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__
