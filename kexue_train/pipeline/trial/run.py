"""Runs a trial: draws the sample, makes every stage of it in a folder of its own, stops training when time is up."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kexue_train.corpus.inputs import Source
from kexue_train.downstream.evaluate.evaluate_model import EVALUATE
from kexue_train.export.stage import EXPORT
from kexue_train.foundation.errors import ResourceError, TrainingError
from kexue_train.foundation.progress import Progress
from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.runtime import format_size, parse_size, require_disk
from kexue_train.foundation.stage import Stage
from kexue_train.pipeline.plan import Machine, find_sources, plan_run, text_source
from kexue_train.pipeline.run import Run, begin_stage, open_run
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import REPORT, stages_of
from kexue_train.pipeline.trial.draw import Drawn, draw_cells, estimate_whole, write_drawn
from kexue_train.pipeline.trial.forecast import Text
from kexue_train.pipeline.trial.measure import (
    Measures,
    StageMeasure,
    TrainingMeasure,
    folder_bytes,
    measure_loss,
    measure_rows,
    measure_training,
)
from kexue_train.pipeline.trial.shrink import TrialBatches, TrialSize, choose_batches, choose_size, trial_config
from kexue_train.report.run_data import load_run
from kexue_train.shuffle.config import ShufConfig
from kexue_train.shuffle.kept_keys import with_all_kept
from kexue_train.shuffle.passes import read_options
from kexue_train.shuffle.plan import split_memory
from kexue_train.supervised.stage import SUPERVISE, supervise
from kexue_train.train.job import TrainDir
from kexue_train.train.stage import TRAIN

DRAW = "draw"
"""What the board calls the drawing of the sample."""
_SAMPLE = "sample.jsonl"
_LEAST_TRAINING_SHARE, _ENDING_SECONDS = 0.1, 5.0
"""Of the time of the trial, training gets at least so much; what else it leaves for the end beside the plans."""


class Board(Progress, Protocol):
    """Shows the stages as they come."""

    def start(self, stage: str) -> None:
        """Show that a stage begins."""
        ...

    def finish(self, stage: str, summary: str, seconds: float, *, made: bool) -> None:
        """Show that a stage is complete."""
        ...


@dataclass(frozen=True, slots=True)
class TrialPlan:
    """What a trial is going to do."""

    config: RunConfig
    """Of the run."""
    trial: RunConfig
    sources: Sequence[Source]
    """Of the run; none where it makes its corpus."""
    size: TrialSize
    batches: TrialBatches
    machine: Machine
    seconds: float
    """That it may take."""
    folder: RunDir
    other_load: float
    """Processes that wanted a CPU before, for each CPU."""
    text_bytes: int = 0
    """Of the corpus of the run, if it is another than its inputs now; else 0."""

    @property
    def stages(self) -> list[str]:
        """Names of what it does, in order."""
        drawing = [DRAW] if self.sources else []
        return [*drawing, *(stage.name for stage in stages_of(self.trial))]


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of it."""

    plan: TrialPlan
    drawn: Drawn | None
    """None where the run makes its corpus."""
    text: Text
    """Of the whole corpus."""
    measures: Measures
    notes: tuple[str, ...]
    """What the stages said, with their names."""
    seconds: float


def plan_trial(
    config: RunConfig, machine: Machine, folder: Path, seconds: float, text_size: str | None = None
) -> TrialPlan:
    """Decide how much of the corpus is taken, and with which batches.

    Args:
        config: The run.
        machine: This machine.
        folder: Of the trial.
        seconds: That it may take.
        text_size: Of the corpus of the run in words, if it is another than its inputs now.

    Raises:
        ConfigError: If ``text_size`` cannot be read, or the run makes its corpus.
        CorpusError: If an input is missing or unusable.
    """
    whole, sources = find_sources(config, text_size), find_sources(config)
    size = choose_size(config, whole, machine, seconds)
    batches = choose_batches(config, machine, seconds)
    shards = min(config.shuffle.shards or 1, machine.cpus)
    trial = trial_config(config, sources, (folder / _SAMPLE).absolute(), size, batches, shards)
    text_bytes = parse_size(text_size) if text_size else 0
    load = os.getloadavg()[0] / machine.cpus
    return TrialPlan(config, trial, sources, size, batches, machine, seconds, RunDir(folder), load, text_bytes)


def run_trial(plan: TrialPlan, board: Board) -> Trial:
    """Make everything anew in the folder of the trial, whose lock the caller holds.

    Raises:
        ResourceError: If training needs a GPU and this machine has none, or too little disk is free.
        ArtifactError: If the folder belongs to a run, or holds other things.
        KexueError: What a stage finds wrong.
    """
    _require_gpu(plan.config)
    started, progress = time.perf_counter(), _Noting(board)
    run = _open_folder(plan)
    drawn, text = None, Text(*[plan.text_bytes] * 3)
    tried_bytes = plan_run(plan.trial, [], plan.machine).text_bytes if not plan.sources else 0
    if plan.sources:
        drawn = _draw(plan, progress)
        tried_bytes = drawn.text_bytes
        text = text if plan.text_bytes else Text(*estimate_whole(plan.sources, drawn))
    measured: dict[str, StageMeasure] = {}
    for stage in stages_of(plan.trial):
        progress.begin(stage.name)
        measured[stage.name] = _make(stage, run, progress, plan, started)
    measures = _measure(run, tried_bytes, measured, plan.other_load)
    return Trial(plan, drawn, text, measures, tuple(progress.notes), time.perf_counter() - started)


def _require_gpu(config: RunConfig) -> None:
    """Say at once what training would say after all data stages; on Ray the GPUs may be on other machines."""
    train = config.train
    if train.device != "cuda" or train.workers.launcher == "ray":
        return
    import torch  # noqa: PLC0415  # only where a GPU is asked for

    if not torch.cuda.is_available():
        raise ResourceError(
            "train.device=cuda, but torch sees no CUDA device here: call kexue try on the machine that is to train, "
            "check its driver and the torch build, or set train.device=cpu to try everything else here"
        )


def _open_folder(plan: TrialPlan) -> Run:
    folder = plan.folder
    folder.claim(plan.trial.name, plan.trial.to_yaml())  # refuses the folder of any run, before it is emptied
    folder.empty()
    need = plan_run(plan.trial, [text_source(plan.size.text_bytes)], plan.machine).peak_disk_bytes
    require_disk(folder.root, need + plan.size.text_bytes, "the trial")
    return open_run(plan.trial, folder.root)


def _draw(plan: TrialPlan, progress: _Noting) -> Drawn:
    progress.begin(DRAW)
    started = time.perf_counter()
    shuffle = with_all_kept(plan.config.shuffle, plan.sources)
    options = read_options(shuffle, ShufConfig(), split_memory(plan.machine.memory_bytes // 2, 1), raw=False)
    drawing = draw_cells(plan.sources, plan.config.seed, plan.size.text_bytes)
    drawn = write_drawn(plan.folder.root / _SAMPLE, plan.sources, drawing, options, progress)
    said = f"{drawn.documents:,} documents, {format_size(drawn.text_bytes)} of text from {drawn.num_sources:,} inputs"
    progress.finish(DRAW, said, time.perf_counter() - started)
    return drawn


def _make(stage: Stage[RunConfig], run: Run, progress: _Noting, plan: TrialPlan, started: float) -> StageMeasure:
    """Make one stage and show it; a training may end before its last step."""
    clock = time.perf_counter()
    changed = _from_checkpoint(stage, run)
    work = begin_stage(changed, run)
    if stage is TRAIN:
        left = plan.seconds - (clock - started) - _ending_seconds(plan)
        stopper = _Stopper(progress, TrainDir(work.out).stop, clock + left, _LEAST_TRAINING_SHARE * plan.seconds)
        try:
            with stopper:
                work.make(stopper)
        except TrainingError:
            if not stopper.has_stopped or _newest_checkpoint(run) is None:
                raise
    else:
        work.make(progress)
    seconds = time.perf_counter() - clock
    if _is_unfinished(stage, run):
        measured = measure_training(work.out, seconds)
        steps = measured.steps if measured else 0
        summary = f"{steps:,} of {plan.config.train.steps:,} steps, then stopped"
        run.folder.record_stage(stage=stage.name, started=work.started, seconds=seconds, rows=0, bytes=0, status="made")
    else:
        summary = work.finish().summary
    progress.finish(stage.name, summary, seconds)
    return StageMeasure(seconds, folder_bytes(work.out) if work.out.exists() else 0)


def _is_unfinished(stage: Stage[RunConfig], run: Run) -> bool:
    return stage is TRAIN and not run.is_complete(TRAIN)


def _newest_checkpoint(run: Run) -> Path | None:
    from kexue_train.train.checkpoint import list_checkpoints  # noqa: PLC0415  # loads torch

    return next(iter(list_checkpoints(TrainDir(run.folder_of(TRAIN)).checkpoints)), None)


def _from_checkpoint(stage: Stage[RunConfig], run: Run) -> Stage[RunConfig]:
    """Return ``stage`` reading the newest checkpoint, where it would look for the last one of a finished training."""
    if stage not in (SUPERVISE, EXPORT) or run.is_complete(TRAIN):
        return stage
    if stage is EXPORT and run.config.supervised:
        return stage
    checkpoint = _newest_checkpoint(run)
    assert checkpoint is not None  # the trial does not come here without one

    def export(_config: RunConfig, _inputs: Sequence[Path], out: Path, progress: Progress) -> None:
        from kexue_train.export.export_hf import export_hf  # noqa: PLC0415  # loads transformers

        export_hf(checkpoint, out, replace=True, progress=progress)

    def train_further(config: RunConfig, inputs: Sequence[Path], out: Path, progress: Progress) -> None:
        shards, samples, _ = inputs
        supervise(config, checkpoint, samples, out, shards=shards, replace=True, progress=progress)

    return replace(stage, make=export if stage is EXPORT else train_further)


def _ending_seconds(plan: TrialPlan) -> float:
    """Return what the stages after training take by their plans."""
    planned = plan_run(plan.trial, [text_source(plan.size.text_bytes)], plan.machine).stages
    after = (planned[stage.name] for stage in (EXPORT, EVALUATE, REPORT))
    return _ENDING_SECONDS + sum(stage.seconds or 0.0 for stage in after)


def _measure(run: Run, text_bytes: int, stages: dict[str, StageMeasure], other_load: float) -> Measures:
    folder, seconds = run.folder, {name: stage.seconds for name, stage in stages.items()}
    training = measure_training(folder.pretrain, seconds[TRAIN.name])
    if training is None:
        raise TrainingError(f"{folder.pretrain}: no step was done, so nothing can be forecast; see its logs")
    further: TrainingMeasure | None = None
    if SUPERVISE.name in stages:
        further = measure_training(folder.supervised, seconds[SUPERVISE.name])
    slots, vocab_size = measure_rows(folder, text_bytes)
    loss, predictions = measure_loss(folder)
    return Measures(
        text_bytes=text_bytes,
        slots_per_text_byte=slots,
        vocab_size=vocab_size,
        stages=stages,
        training=training,
        supervised=further,
        other_load=other_load,
        entropy=load_run(folder.root).training_entropy,
        heldout_loss=loss,
        heldout_predictions=predictions,
    )


class _Noting:
    """Hands on what a stage reports, and remembers its notes."""

    def __init__(self, board: Board) -> None:
        self._board, self._stage = board, ""
        self.notes: list[str] = []

    def begin(self, stage: str) -> None:
        self._stage = stage
        self._board.start(stage)

    def finish(self, stage: str, summary: str, seconds: float) -> None:
        self._board.finish(stage, summary, seconds, made=True)

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        self._board.update(done, total, unit, **facts)

    def note(self, message: str) -> None:
        self.notes.append(f"{self._stage}: {message}")
        self._board.note(message)


class _Stopper:
    """Asks a training to stop at a time, but not before it has trained for a while."""

    def __init__(self, progress: Progress, file: Path, deadline: float, least: float) -> None:
        self._progress, self._file, self._deadline, self._least = progress, file, deadline, least
        self._timer: threading.Timer | None = None
        self.has_stopped = False

    def __enter__(self) -> _Stopper:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer:
            self._timer.cancel()

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        if unit == "steps" and done and self._timer is None:
            left = max(self._deadline - time.perf_counter(), self._least)
            self._timer = threading.Timer(left, self._stop)
            self._timer.daemon = True
            self._timer.start()
        self._progress.update(done, total, unit, **facts)

    def note(self, message: str) -> None:
        self._progress.note(message)

    def _stop(self) -> None:
        self.has_stopped = True
        self._file.touch()
