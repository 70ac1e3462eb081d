"""Build a training from its configuration: model, optimizer, engine and the last checkpoint, alike on every rank."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from kexue_train.batches.mixed import MixedDataset, TrainingData
from kexue_train.foundation.artifacts import Recipe
from kexue_train.foundation.counter_rng import Purpose, random_words
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import Progress, Silent
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.model.recompute import compile_layers, enable_recompute
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.build import AccumulatingOptimizer, build_optimizer
from kexue_train.train.checkpoint import (
    CheckpointFolder,
    CheckpointWriter,
    Events,
    FullTensors,
    Mirror,
    Restored,
    Retention,
    Storage,
    TrainerState,
    latest_checkpoint,
    restore,
)
from kexue_train.train.config import RecomputeEvery, TrainConfig
from kexue_train.train.distributed import collective_timeout
from kexue_train.train.engine import build_engine
from kexue_train.train.faults.step_report import StepReports
from kexue_train.train.faults.stop import StopRequest
from kexue_train.train.faults.watchdog import Watchdog
from kexue_train.train.initial_weights import load_initial_weights
from kexue_train.train.job import JobConfig, TrainDir, samples_digest
from kexue_train.train.loop import Guards, LoopState, Setup, Training, detectors_of
from kexue_train.train.micro_batch import micro_batch_sizes
from kexue_train.train.monitor.flops import flop_rule, peak_rates
from kexue_train.train.monitor.meter import Speedometer
from kexue_train.train.monitor.norms import StepNorms
from kexue_train.train.monitor.profiling import StepProfiler
from kexue_train.train.monitor.symptoms import SymptomWatch
from kexue_train.train.objective import PretrainingObjective, prior_losses
from kexue_train.train.phases import Phase, plan_phases
from kexue_train.train.precision import ChosenPrecision, choose_precision
from kexue_train.train.task_heads import add_task_layers, heads_of
from kexue_train.train.weighting.build import build_weights
from kexue_train.train.weighting.scheme import TaskWeights

logger = logging.getLogger(__name__)


def build_training(
    config: JobConfig,
    datasets: Sequence[TrainingData],
    paths: TrainDir,
    device: torch.device,
    stop: StopRequest,
    watchdog: Watchdog,
) -> tuple[Training, list[str]]:
    """Build all that a training needs, at its last checkpoint, but for what rank 0 writes.

    Returns:
        The training, and what was wrong with newer checkpoints or with their storage.

    Raises:
        KexueError: If model, samples, weights or checkpoint do not fit together.
    """
    train, notes = config.train, _Notes()
    recipe = config.recipe(samples_digest(datasets))
    found = _find_checkpoint(config, recipe, paths, device, notes)
    kept = found.state.precision if found else None
    precision = choose_precision(train, config.model, datasets[0].seq_len, device, kept)
    if precision.reason:
        logger.info(precision.reason)
    objective = _build_objective(config, datasets[0], device, precision)
    phases = _plan(config, objective, datasets, paths)
    if train.compute.compile:
        compile_layers(objective.model.roformer, cuda_graphs=train.compute.cuda_graphs)
    optimizer = build_optimizer(
        config.optimizer,
        objective.model,
        accumulation_steps=phases[0].accumulation_steps,
        seed=config.seed,
        partitioned=train.compute.zero_stage > 0,
        lazy_tensors=isinstance(datasets[0], MixedDataset),  # the head of a task that a step has not rests
    )
    if train.init_from:
        load_initial_weights(train.init_from, objective.model)
    saved, is_scored = _resume(found, FullTensors.of(objective.model, optimizer), config.seed)
    if train.precision == "auto":
        saved = replace(saved, precision=precision.name)
    del found  # copied
    optimizer.restart_at(saved.step)
    setup = Setup(
        config=config,
        recipe=recipe,
        paths=paths,
        phases=phases,
        datasets=datasets,
        device=device,
        precision=precision,
        objective=objective,
        num_parameters=sum(p.numel() for p in objective.model.parameters()),  # an engine may leave less to count
        optimizer=optimizer,
        engine=build_engine(train, phases[0], objective, optimizer, paths.root),
        speed=_speed(config, datasets[0], device, precision, saved.step),
        profiler=StepProfiler(train.logging.profile, paths.logs, dist.get_rank()),
        norms=_norms(train, optimizer),
    )
    objective.weights = _build_weights(config, phases[0], objective, datasets[0], optimizer)
    if objective.weights is not None and saved.weighting:
        try:
            objective.weights.load_state_dict(saved.weighting)
        except ValueError as error:
            raise ArtifactError(f"{paths.root}: {error}") from None
    reports = StepReports(objective.heads, collective_timeout(train.faults.hang_timeout))
    state = LoopState(
        saved=saved, losses=detectors_of(objective.heads, saved), symptoms=SymptomWatch(), is_scored=is_scored
    )
    guards = Guards(stop=stop, watchdog=watchdog, reports=reports)
    return Training(setup=setup, state=state, guards=guards), notes.messages


def _norms(train: TrainConfig, optimizer: AccumulatingOptimizer) -> StepNorms | None:
    """On rank 0, where the tensors are whole and the optimizer is ours."""
    whole = dist.get_rank() == 0 and not train.compute.zero_stage
    return StepNorms(optimizer) if whole and isinstance(optimizer, HiddenAccumulation) else None


def _build_objective(
    config: JobConfig, dataset: TrainingData, device: torch.device, precision: ChosenPrecision
) -> PretrainingObjective:
    """The model, initialised from the seed alike on every rank, with its loss."""
    train = config.train
    torch.manual_seed(int(random_words(config.seed, Purpose.INIT, 0, 0)[0, 0]) & (2**63 - 1))
    weights = torch.bfloat16 if config.optimizer.states == "bf16" else torch.float32
    model = RoFormerV2ForPreTraining(build_hf_config(config.model, dataset.vocab_size)).to(device, weights)
    if isinstance(train.compute.recompute, RecomputeEvery):
        enable_recompute(model.roformer, "full", every=train.compute.recompute.every)
    elif train.compute.recompute != "none":
        enable_recompute(model.roformer, train.compute.recompute)
    autocast = torch.bfloat16 if precision.name == "bf16" else None
    add_task_layers(model, dataset)
    model.to(device, weights)
    heads = heads_of(train.objective, dataset)
    return PretrainingObjective(
        model, heads, autocast=autocast, has_graphs=train.compute.cuda_graphs,
        calls_all_heads=train.compute.zero_stage > 0,
    )  # fmt: skip


def _build_weights(
    config: JobConfig,
    phase: Phase,
    objective: PretrainingObjective,
    dataset: TrainingData,
    optimizer: AccumulatingOptimizer,
) -> TaskWeights | None:
    """What weighs the tasks; None where losses count as they are.

    Raises:
        ConfigError: If the weighting could have no effect, or does not go with tasks or optimizer.
    """
    weighting = config.train.objective.weighting
    if weighting.scheme == "equal":
        return None
    return build_weights(
        weighting,
        prior_losses(objective.heads, dataset),
        micro_batches_per_step=phase.global_batch_size // phase.micro_batch_size,
        seed=config.seed,
        optimizer=optimizer,
        shared=objective.model.roformer.parameters(),
    )


def _plan(
    config: JobConfig, objective: PretrainingObjective, datasets: Sequence[TrainingData], paths: TrainDir
) -> tuple[Phase, ...]:
    sizes = micro_batch_sizes(config, objective, datasets, paths.micro_batch_sizes)
    return plan_phases(config.train, [dataset.seq_len for dataset in datasets], sizes)


def _find_checkpoint(
    config: JobConfig, recipe: Recipe, paths: TrainDir, device: torch.device, notes: Progress
) -> Restored | None:
    """Read the newest whole checkpoint that rank 0 sees, the same on every rank. A collective call."""
    storage = Storage(config.train.checkpoints.mirror) if config.train.checkpoints.mirror else None
    return restore(lambda: latest_checkpoint(paths.checkpoints, notes, storage=storage, recipe=recipe), device)


def _resume(found: Restored | None, tensors: FullTensors, seed: int) -> tuple[TrainerState, bool]:
    """Load what was found; return its state, or a fresh one, and whether it tells the validation loss of its step."""
    if found is None:
        return TrainerState(seed=seed), True
    try:
        tensors.overwrite(found.weights, found.optimizer_tensors)
    except ArtifactError as error:
        raise ArtifactError(f"{found.path}: {error}") from None
    logger.info("resumed from %s", found.path)
    return found.state, found.is_scored


def _speed(
    config: JobConfig, dataset: TrainingData, device: torch.device, precision: ChosenPrecision, step: int
) -> Speedometer:
    return Speedometer(flop_rule(config.model, dataset.vocab_size), peak_rates(precision.dtype, device), step)


class _Notes(Silent):
    """Notes go to the rank's log at once, and are kept for the metrics, which are not open yet."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def note(self, message: str) -> None:
        """Log as a warning."""
        logger.warning(message)
        self.messages.append(message)


def open_checkpoints(config: JobConfig, datasets: Sequence[TrainingData], paths: TrainDir) -> CheckpointWriter:
    """What saves checkpoints in the background, and mirrors them if asked to."""
    train, recipe, events = config.train, config.recipe(samples_digest(datasets)), Events()
    folder = CheckpointFolder(paths.checkpoints, Retention(train.checkpoints.keep, train.checkpoints.keep_every))
    mirror = Mirror(folder, Storage(train.checkpoints.mirror), recipe, events) if train.checkpoints.mirror else None
    tokenizer = datasets[0].folders[0] / "tokenizer"
    return CheckpointWriter(folder, recipe=recipe, tokenizer=tokenizer, events=events, mirror=mirror)
