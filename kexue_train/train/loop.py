"""The training loop, read from the top: what one step does, and what is written after which steps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.batches.collate import PREDICTION
from kexue_train.batches.mixed import TrainingData
from kexue_train.foundation.artifacts import Recipe
from kexue_train.foundation.counter_rng import Purpose, random_words
from kexue_train.foundation.errors import TrainingError
from kexue_train.metrics.fields import TASK_WEIGHT, Kind
from kexue_train.metrics.heads import HEADS
from kexue_train.metrics.spikes import SpikeDetector
from kexue_train.model.modeling_roformer_v2 import set_residual_scale
from kexue_train.optim.build import AccumulatingOptimizer, set_learning_rate
from kexue_train.optim.embedding_rows import embedding_sizes
from kexue_train.samples.task_kinds import WORDS
from kexue_train.train.checkpoint import CheckpointWriter, TrainerState
from kexue_train.train.config import TrainConfig
from kexue_train.train.data import PhaseData, Tensors, heldout_batches, open_phase_data, source_names, to_device
from kexue_train.train.engine import Engine
from kexue_train.train.faults.spikes import Spike, count_skipped_rows
from kexue_train.train.faults.step_report import StepReport, StepReports
from kexue_train.train.faults.stop import Ending, StopRequest
from kexue_train.train.faults.watchdog import Watchdog
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.monitor.lines import phase_values, source_values, task_values, training_values, values_of_heads
from kexue_train.train.monitor.loggers import MetricLogger
from kexue_train.train.monitor.meter import Meter, Speedometer
from kexue_train.train.monitor.norms import StepNorms
from kexue_train.train.monitor.profiling import StepProfiler
from kexue_train.train.monitor.symptoms import SymptomWatch
from kexue_train.train.objective import Heads, PretrainingObjective, total_loss, validate
from kexue_train.train.phases import Phase, phase_after, phase_of
from kexue_train.train.precision import ChosenPrecision

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a training works with: the same from its first step to its last."""

    config: JobConfig
    recipe: Recipe
    paths: TrainDir
    phases: tuple[Phase, ...]
    datasets: Sequence[TrainingData]
    """The samples of each phase."""
    device: torch.device
    precision: ChosenPrecision
    objective: PretrainingObjective
    num_parameters: int
    optimizer: AccumulatingOptimizer
    engine: Engine
    speed: Speedometer
    profiler: StepProfiler
    norms: StepNorms | None
    """None on all ranks but 0."""


@dataclass(kw_only=True)
class LoopState:
    """What changes from step to step."""

    saved: TrainerState
    """The part that checkpoints hold."""
    losses: dict[str, SpikeDetector]
    """By task."""
    symptoms: SymptomWatch
    seconds: float = 0.0
    """Time spent training, over all starts."""
    is_scored: bool = True
    """Whether the checkpoint that training resumes from tells the validation loss of its step."""

    @property
    def step(self) -> int:
        """Steps done."""
        return self.saved.step


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What watches over the loop, on every rank."""

    stop: StopRequest
    watchdog: Watchdog
    reports: StepReports


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What rank 0 writes."""

    metrics: MetricLogger
    checkpoints: CheckpointWriter


@dataclass(frozen=True, kw_only=True)
class Training:
    """All that the loop works on; built by the worker."""

    setup: Setup
    state: LoopState
    guards: Guards
    outputs: Outputs | None = None
    """None on all ranks but 0."""


class Due(NamedTuple):
    """What follows a step."""

    last: bool
    save: bool
    log: bool
    validate: bool


def due_after(train: TrainConfig, step: int) -> Due:
    """Return what follows ``step``; a line of metrics comes before every checkpoint, which holds the tokens so far."""
    last = step == train.steps
    save = last or step % train.checkpoints.every == 0
    return Due(
        last,
        save,
        log=save or step % train.logging.log_every == 0,
        validate=last or step % train.logging.validate_every == 0,
    )


def train_loop(training: Training) -> Ending:
    """Train to the last step, or to a request to stop; either way a checkpoint is saved.

    Raises:
        Spike: If a loss is one and ``train.faults.on_spike`` does not ignore it; on every rank after the same step.
    """
    setup, state, outputs = training.setup, training.state, training.outputs
    train, heads = setup.config.train, setup.objective.heads
    data = begin_phase(setup, state)
    meter = Meter(heads, setup.device)
    try:
        if ending := catch_up(training, data):
            return ending
        while state.step < train.steps:
            if state.step == data.phase.end:
                data.batches.close()
                data = begin_phase(setup, state)
                if outputs:
                    outputs.metrics.write(Kind.PHASE, state.step, **phase_values(data.phase))
            due = due_after(train, state.step + 1)
            step = run_step(training, data, meter, due)  # read the batches; forward, backward, update
            ending = exchange_reports(training, meter.step_sums, drain=due.save)
            if due.log or ending:
                log_step(training, data, meter)
                meter = Meter(heads, setup.device)
                report_saved(training)
            scores: dict[str, float] = {}
            if due.validate and not ending:
                with meter.paused():
                    scores, ending = score_heldout(training, data.heldout)
            if due.save or ending:
                with meter.paused():
                    save_step(training, total_loss(scores, heads))
            if ending:
                logger.info("%s after step %d; checkpoint in %s", ending.name.lower(), step, setup.paths.checkpoints)
                return ending
    finally:
        data.batches.close()
    return Ending.FINISHED


def begin_phase(setup: Setup, state: LoopState) -> PhaseData:
    """Make ready for the next step: what it reads, how it accumulates, what divides its loss."""
    config, step = setup.config, state.step
    phase = phase_after(setup.phases, step)
    dataset = setup.datasets[phase.number - 1]
    setup.objective.scale_to(dataset, phase.micro_batch_size, config.train.objective.loss_unit)
    setup.optimizer.accumulation_steps = phase.accumulation_steps  # between two steps, nothing is accumulated
    state.saved = replace(state.saved, micro_step=phase.micro_steps(step))
    state.symptoms = SymptomWatch()  # what is usual changes with the rows
    skipped = count_skipped_rows(state.saved.left_out, phase.seq_len)
    return open_phase_data(config, phase, dataset, step, setup.device, skipped)


def run_step(training: Training, data: PhaseData, meter: Meter, due: Due) -> int:
    """Run the micro-batches of one step; return the number of steps done."""
    setup, state = training.setup, training.state
    config, step, micro_step = setup.config, state.step + 1, state.saved.micro_step
    set_learning_rate(setup.optimizer, config.optimizer.schedule.multiplier(step))
    set_residual_scale(setup.objective, config.train.residual_scale(step))
    setup.objective.train()
    meter.start_step()
    if setup.norms:
        setup.norms.wanted = due.log
    setup.profiler.before(step)
    if weights := setup.objective.weights:
        weights.begin_step(data.tasks_of_step(step))
    for index in range(data.phase.accumulation_steps):
        with meter.waiting():
            batch = next(data.batches)
        _seed_dropout(config.seed, micro_step + index)
        on_device = to_device(batch, setup.device)
        predicted = (on_device[name] for name in (PREDICTION.labels,) if name in on_device)
        setup.optimizer.observe_tokens(on_device["input_ids"], *predicted)
        sums = setup.engine.micro_step(on_device)
        meter.add(sums, batch)
        training.guards.watchdog.beat(micro_step + index + 1)
    if weights:
        weights.end_step()
    state.saved = replace(state.saved, step=step, micro_step=data.phase.micro_steps(step))
    if (trace := setup.profiler.after(step)) and training.outputs:
        training.outputs.metrics.write(Kind.PROFILE, step, path=str(trace))
    return step


def _seed_dropout(seed: int, micro_step: int) -> None:
    """Derive dropout from (seed, micro-step, rank), so a resume needs no generator state."""
    word = int(random_words(seed, Purpose.DROPOUT, dist.get_rank(), micro_step)[0, 0])
    torch.manual_seed(word & (2**63 - 1))


def exchange_reports(training: Training, sums: Tensor, *, drain: bool) -> Ending | None:
    """Send the other ranks the report of the step just done, and check those that arrive about earlier steps.

    Args:
        training: The training.
        sums: This rank's ``LabelScores`` of the step, [heads, 3].
        drain: Wait for the reports about this step, too.

    Returns:
        How training is to end now, if it is; then all steps have been checked.

    Raises:
        Spike: As ``train_loop``.
    """
    guards = training.guards
    asked, drained = guards.stop.poll()
    reports = guards.reports.add(training.state.step, sums, asked=asked, drained=drained)
    if drain or any(report.asked or report.drained for report in reports):
        reports += guards.reports.drain(asked=asked, drained=drained)
    return judge(training, reports)


def detectors_of(heads: Heads, saved: TrainerState) -> dict[str, SpikeDetector]:
    """Return what compares the losses of each task with those that a checkpoint remembers."""
    recent = {WORDS: saved.recent_losses} | saved.recent_task_losses
    return {head.task: SpikeDetector(recent.get(head.task, ())) for head in heads}


def judge(training: Training, reports: Sequence[StepReport]) -> Ending | None:
    """Check the losses that were told, and return how training is to end now, if it is; alike on every rank.

    Raises:
        Spike: As ``train_loop``.
    """
    state = training.state
    for report in reports:
        check_spike(training, report)
    remembered = {task: losses.remembered for task, losses in state.losses.items()}
    words = remembered.pop(WORDS, ())
    state.saved = replace(state.saved, recent_losses=words, recent_task_losses=remembered)
    if any(report.asked for report in reports):
        return Ending.STOPPED
    return Ending.DRAINED if any(report.drained for report in reports) else None


def check_spike(training: Training, report: StepReport) -> None:
    """Compare the loss of each task in a step with those before it.

    Raises:
        Spike: As ``train_loop``.
    """
    setup = training.setup
    for task, loss in report.losses.items():
        losses = training.state.losses[task]
        if any(report.step == phase.first_step + 1 for phase in setup.phases):
            losses.forget()  # rows of another length have another loss
        usual = losses.usual
        ignored = setup.config.train.faults.on_spike == "ignore" and math.isfinite(loss)
        if losses.is_spike(loss) and not ignored:
            raise Spike(report.step, loss, usual)


def catch_up(training: Training, data: PhaseData) -> Ending | None:
    """Score the step of the checkpoint that training resumes from, if a request to stop has kept that from being done.

    A collective call; returns how training is to end now, if it is.
    """
    setup, state = training.setup, training.state
    due = due_after(setup.config.train, state.step)
    if not (state.step and due.validate and data.heldout) or state.is_scored:
        return None
    heldout, phase = data.heldout, phase_of(setup.phases, state.step)
    if phase.number != data.phase.number:  # the step was the last of its phase
        heldout = heldout_batches(setup.config, phase, setup.datasets[phase.number - 1])
    scores, ending = score_heldout(training, heldout)
    if due.save and not ending:
        save_step(training, total_loss(scores, setup.objective.heads))
    return ending


def score_heldout(training: Training, heldout: Sequence[Tensors]) -> tuple[dict[str, float], Ending | None]:
    """Score the held-out rows; no scores but how to end, if a request to stop comes meanwhile. A collective call."""
    setup, state, guards = training.setup, training.state, training.guards
    ending: Ending | None = None

    def until_asked() -> Iterator[Tensors]:
        nonlocal ending
        for batch in heldout:
            asked, drained = guards.stop.poll()
            if ending := judge(training, guards.reports.drain(asked=asked, drained=drained)):
                return
            yield batch
            guards.watchdog.beat(state.saved.micro_step)

    sources = source_names(setup.datasets[phase_of(setup.phases, state.step).number - 1])
    scores, by_source = validate(setup.objective, until_asked(), setup.device, sources)
    if ending:
        return {}, ending
    if training.outputs:
        if values := values_of_heads(scores, HEADS):
            training.outputs.metrics.write(Kind.VALIDATION, state.step, **values)
        for name, own in by_source.items():
            if values := source_values(own):
                training.outputs.metrics.write(Kind.SOURCE, state.step, source=name, **values)
        write_task_lines(training.outputs.metrics, state.step, "heldout", scores, setup.objective.heads)
    return scores, None


def log_step(training: Training, data: PhaseData, meter: Meter) -> None:
    """Add up over the ranks, and write one line of metrics and what it shows to be wrong. A collective call."""
    setup, state = training.setup, training.state
    totals = meter.total()
    state.saved = replace(state.saved, tokens=state.saved.tokens + totals.tokens)
    state.seconds += totals.seconds
    rates = setup.speed.read(state.step, setup.config.train.steps, totals)
    _check_gradients(training)
    table = setup.engine.full_parameter(setup.objective.model.get_input_embeddings().weight)
    if training.outputs is None:
        return
    line = training_values(
        state.saved,
        data.phase,
        totals,
        loss=total_loss(totals.scores, setup.objective.heads),
        lr=setup.optimizer.param_groups[0]["lr"],
        epoch=data.epoch(state.step),
        seconds=state.seconds,
    )
    line |= rates | embedding_sizes(table, setup.config.optimizer.weight_decay)
    line |= setup.norms.take() if setup.norms else {}
    training.outputs.metrics.write(Kind.TRAIN, state.step, **line)
    weights = setup.objective.weights.weights() if setup.objective.weights else {}
    write_task_lines(training.outputs.metrics, state.step, "train", totals.scores, setup.objective.heads, weights)
    for symptom, message in state.symptoms.look(line).items():
        training.outputs.metrics.warn(state.step, symptom, message)


def write_task_lines(
    metrics: MetricLogger,
    step: int,
    split: Literal["train", "heldout"],
    scores: dict[str, float],
    heads: Heads,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Write a line for every labelled task that has scores, with its weight if it has one."""
    for trained in heads:
        if trained.task != WORDS and (values := task_values(trained.head, scores)):
            weight = {TASK_WEIGHT.key: weights[trained.task]} if trained.task in weights else {}
            metrics.write(Kind.TASK, step, task=trained.task, split=split, **values, **weight)


def _check_gradients(training: Training) -> None:
    """Write down tensors that had a gradient that was not finite; alike on every rank.

    Raises:
        TrainingError: If that was so in too many steps in a row.
    """
    setup, step = training.setup, training.state.step
    report, allowed = setup.optimizer.nonfinite_report(), setup.config.optimizer.max_nonfinite_steps
    if report.steps and training.outputs:
        training.outputs.metrics.write(Kind.NONFINITE, step, tensors=report.steps, in_a_row=report.in_a_row)
    if report.in_a_row >= allowed:
        raise TrainingError(
            f"gradients were NaN or infinite in {report.in_a_row} steps in a row up to step {step}, in "
            f"{', '.join(report.steps)}; allowed are fewer than optimizer.max_nonfinite_steps={allowed}. Lower "
            "optimizer.lr, or lengthen the warm-up, and start from an earlier checkpoint"
        )


def save_step(training: Training, validation_loss: float | None) -> None:
    """Hand weights and optimizer state to the writer; the line says for how many seconds that held the loop up.

    A collective call.
    """
    started = time.perf_counter()
    tensors, weights = training.setup.engine.full_tensors(), training.setup.objective.weights
    if weights is not None:
        training.state.saved = replace(training.state.saved, weighting=weights.state_dict())
    if training.outputs:
        state, outputs = training.state.saved, training.outputs
        outputs.checkpoints.save(training.setup.objective.model, *tensors, state, validation_loss)
        outputs.metrics.write(Kind.CHECKPOINT, state.step, stall_seconds=time.perf_counter() - started)


def report_saved(training: Training) -> None:
    """Write what happened to checkpoints in the background into the metrics.

    Raises:
        TrainingError: If several in a row could not be written.
    """
    if training.outputs:
        for event in training.outputs.checkpoints.take_events():
            training.outputs.metrics.write(event.kind, event.step, **event.values)
