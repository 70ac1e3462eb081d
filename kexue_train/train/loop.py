"""The training loop: what one step does, and what is written after which steps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.artifacts import Recipe
from kexue_train.foundation.counter_rng import Purpose, random_words
from kexue_train.foundation.errors import TrainingError
from kexue_train.metrics.fields import Kind
from kexue_train.metrics.spikes import SpikeDetector
from kexue_train.model.modeling_roformer_v2 import set_residual_scale
from kexue_train.optim.build import AccumulatingOptimizer, set_learning_rate
from kexue_train.optim.embedding_rows import embedding_sizes
from kexue_train.train.checkpoint import CheckpointWriter, TrainerState
from kexue_train.train.engine import Engine
from kexue_train.train.faults.spikes import Spike, count_skipped_rows
from kexue_train.train.faults.step_report import StepReport, StepReports
from kexue_train.train.faults.stop import Ending, StopRequest
from kexue_train.train.faults.watchdog import Watchdog
from kexue_train.train.feed import heldout_batches, training_batches
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.monitor.lines import phase_values, training_values
from kexue_train.train.monitor.loggers import MetricLogger
from kexue_train.train.monitor.meter import Meter, Speedometer
from kexue_train.train.monitor.norms import StepNorms
from kexue_train.train.monitor.profiling import StepProfiler
from kexue_train.train.monitor.symptoms import SymptomWatch
from kexue_train.train.objective import PretrainingObjective, total_loss, validate
from kexue_train.train.phases import Phase, phase_after
from kexue_train.train.tensors import Tensors, to_device

logger = logging.getLogger(__name__)


@dataclass
class Training:
    """Everything the loop works on; built by the worker."""

    config: JobConfig
    recipe: Recipe
    paths: TrainDir
    tokenizer: Path
    """Folder whose tokenizer files go into every checkpoint."""
    phases: tuple[Phase, ...]
    datasets: Sequence[SampleDataset]
    """The samples of each phase."""
    num_parameters: int
    objective: PretrainingObjective
    optimizer: AccumulatingOptimizer
    engine: Engine
    device: torch.device
    state: TrainerState
    stop: StopRequest
    watchdog: Watchdog
    reports: StepReports
    spikes: SpikeDetector
    speed: Speedometer
    profiler: StepProfiler
    norms: StepNorms | None
    """None on all ranks but 0."""
    metrics: MetricLogger | None = None
    """None on all ranks but 0."""
    checkpoints: CheckpointWriter | None = None
    """None on all ranks but 0."""
    spike: Spike | None = None
    """What it goes back from, if it does."""
    seconds: float = 0.0
    """Time spent training, over all starts."""
    symptoms: SymptomWatch = field(default_factory=SymptomWatch)
    passed_over: Sequence[str] = ()
    """What was wrong with newer checkpoints, or with their storage, at the start."""
    # Set by ``enter_phase``.
    phase: Phase = field(init=False)
    batches: Generator[Tensors] = field(init=False)
    heldout: list[Tensors] = field(init=False)
    """This rank's share of the held-out rows."""
    rows_per_epoch: int = field(init=False)
    rows_left_out: int = field(init=False)
    """Skipped of these rows after spikes."""


def enter_phase(training: Training) -> None:
    """Make ready for the step after ``training.state``: what it reads, how it accumulates, what divides its loss."""
    config, step = training.config, training.state.step
    phase = phase_after(training.phases, step)
    dataset = training.datasets[phase.number - 1]
    training.phase, training.rows_per_epoch = phase, dataset.num_training_rows
    training.rows_left_out = count_skipped_rows(training.state.left_out, phase.seq_len)
    training.batches = training_batches(config, phase, dataset, step, training.device, training.rows_left_out)
    training.heldout = heldout_batches(config, phase, dataset)
    training.objective.scale_to(dataset, phase.micro_batch_size, config.train.objective.loss_unit)
    training.optimizer.accumulation_steps = phase.accumulation_steps  # a border of phases is one of windows
    training.state = replace(training.state, micro_step=phase.micro_steps(step))


def train_loop(training: Training) -> Ending:
    """Train from ``training.state`` to the last step, or to a request to stop; either way a checkpoint is saved.

    Raises:
        Spike: If a loss is one and ``train.faults.on_spike`` does not ignore it; on every rank after the same step.
    """
    config, paths = training.config.train, training.paths
    meter = Meter(training.objective.heads, training.device)
    while training.state.step < config.steps:
        if training.state.step == training.phase.end:
            _next_phase(training)
        step = _one_step(training, meter)
        last = step == config.steps
        saving = last or step % config.checkpoints.every == 0
        stopping = _hear(training, meter.step_sums, everything=saving)
        if (
            saving or stopping or step % config.logging.log_every == 0
        ):  # before a checkpoint: it holds tokens and time so far
            _log(training, meter)
            meter = Meter(training.objective.heads, training.device)
            report_saved(training)
        scores: dict[str, float] = {}
        if last or step % config.logging.validate_every == 0:
            heldout = _watched(training.heldout, training)
            with meter.paused():
                scores = validate(training.objective, heldout, training.device)
            if training.metrics:
                training.metrics.write(Kind.VALIDATION, step, **scores)
        if saving or stopping:
            with meter.paused():
                _save(training, total_loss(scores, training.objective.heads))
        if stopping and not last:
            logger.info("%s after step %d; checkpoint in %s", stopping.name.lower(), step, paths.checkpoints)
            return stopping
    return Ending.FINISHED


def _hear(training: Training, sums: Tensor, *, everything: bool) -> Ending | None:
    """Tell the other ranks about the step just done, and judge what they all told about those before.

    Args:
        training: The training.
        sums: This rank's ``LabelScores`` of the step, [heads, 3].
        everything: Wait for what they tell about this step, too.

    Returns:
        How training is to end now, if it is; then everything was judged.
    """
    asked, drained = training.stop.poll()
    reports = training.reports.add(training.state.step, sums, asked=asked, drained=drained)
    if everything or any(report.asked or report.drained for report in reports):
        reports += training.reports.drain(asked=asked, drained=drained)
    for report in reports:
        _judge(training, report)
    training.state = replace(training.state, recent_losses=training.spikes.remembered)
    if any(report.asked for report in reports):
        return Ending.STOPPED
    return Ending.DRAINED if any(report.drained for report in reports) else None


def _judge(training: Training, report: StepReport) -> None:
    if report.loss is None:
        return
    if any(report.step == phase.first_step + 1 for phase in training.phases):
        training.spikes.forget()  # rows of another length have another loss
    usual = training.spikes.usual
    ignored = training.config.train.faults.on_spike == "ignore" and math.isfinite(report.loss)
    if training.spikes.is_spike(report.loss) and not ignored:
        raise Spike(report.step, report.loss, usual)


def _watched(batches: Iterable[Tensors], training: Training) -> Iterator[Tensors]:
    for batch in batches:
        yield batch
        training.watchdog.beat(training.state.micro_step)


def _next_phase(training: Training) -> None:
    training.batches.close()
    enter_phase(training)
    training.symptoms = SymptomWatch()  # what is usual changes with the rows
    if training.metrics:
        training.metrics.write(Kind.PHASE, training.state.step, **phase_values(training.phase))


def _one_step(training: Training, meter: Meter) -> int:
    """Run the micro-batches of one step; returns the number of steps done."""
    config, state = training.config, training.state
    step = state.step + 1
    set_learning_rate(training.optimizer, config.optimizer.schedule.multiplier(step))
    set_residual_scale(training.objective, config.train.residual_scale(step))
    training.objective.train()
    meter.start_step()
    if training.norms:
        training.norms.wanted = step == config.train.steps or not all(
            step % every for every in (config.train.logging.log_every, config.train.checkpoints.every)
        )
    training.profiler.before(step)
    for index in range(training.phase.accumulation_steps):
        with meter.waiting():
            batch = next(training.batches)
        _seed_dropout(config.seed, state.micro_step + index)
        training.optimizer.observe_tokens(batch["input_ids"], batch["prediction_labels"])
        meter.add(training.engine.micro_step(to_device(batch, training.device)), batch)
        training.watchdog.beat(state.micro_step + index + 1)
    training.state = replace(state, step=step, micro_step=training.phase.micro_steps(step))
    if (trace := training.profiler.after(step)) and training.metrics:
        training.metrics.write(Kind.PROFILE, step, path=str(trace))
    return step


def _seed_dropout(seed: int, micro_step: int) -> None:
    """Dropout follows from (seed, micro-step, rank), so a resume needs no generator state."""
    word = int(random_words(seed, Purpose.DROPOUT, dist.get_rank(), micro_step)[0, 0])
    torch.manual_seed(word & (2**63 - 1))


def _log(training: Training, meter: Meter) -> None:
    """Add up over the ranks and write one line, and what it shows to be wrong."""
    config, state = training.config, training.state
    totals = meter.total()
    training.state = replace(state, tokens=state.tokens + totals.tokens)
    training.seconds += totals.seconds
    rates = training.speed.read(state.step, config.train.steps, totals)
    _check_gradients(training)
    table = training.engine.full_parameter(training.objective.model.get_input_embeddings().weight)
    if not training.metrics:
        return
    line = training_values(
        training.state,
        training.phase,
        totals,
        loss=total_loss(totals.scores, training.objective.heads),
        lr=training.optimizer.param_groups[0]["lr"],
        epoch=(training.phase.rows(state.step) + training.rows_left_out) / training.rows_per_epoch,
        seconds=training.seconds,
    )
    line |= rates | embedding_sizes(table, config.optimizer.weight_decay)
    line |= training.norms.take() if training.norms else {}
    training.metrics.write(Kind.TRAIN, state.step, **line)
    for symptom, message in training.symptoms.look(line).items():
        training.metrics.warn(state.step, symptom, message)


def _check_gradients(training: Training) -> None:
    """Write down tensors that had a gradient that was not finite; alike on every rank.

    Raises:
        TrainingError: If that was so in too many steps in a row.
    """
    report, allowed = training.optimizer.nonfinite_report(), training.config.optimizer.max_nonfinite_steps
    if report.steps and training.metrics:
        training.metrics.write(Kind.NONFINITE, training.state.step, tensors=report.steps, in_a_row=report.in_a_row)
    if report.in_a_row >= allowed:
        raise TrainingError(
            f"gradients were NaN or infinite in {report.in_a_row} steps in a row up to step {training.state.step}, in "
            f"{', '.join(report.steps)}; allowed are fewer than optimizer.max_nonfinite_steps={allowed}. Lower "
            "optimizer.lr, or lengthen the warm-up, and start from an earlier checkpoint"
        )


def _save(training: Training, validation_loss: float | None) -> None:
    """Hand weights and optimizer state to the writer; the event says for how many seconds that held the loop."""
    started = time.perf_counter()
    tensors = training.engine.full_tensors()
    if training.checkpoints and training.metrics:
        training.checkpoints.save(training.objective.model, *tensors, training.state, validation_loss)
        training.metrics.write(Kind.CHECKPOINT, training.state.step, stall_seconds=time.perf_counter() - started)


def report_saved(training: Training) -> None:
    """Write what happened to checkpoints in the background into the metrics.

    Raises:
        TrainingError: If several in a row could not be written.
    """
    if training.checkpoints and training.metrics:
        for event in training.checkpoints.take_events():
            training.metrics.write(event.kind, event.step, **event.values)
