"""What a rank reads in a phase: its micro-batches, ahead of time, and its held-out rows, as tensors.

Batches are pinned where they are made, so that the copy to a device overlaps with its work.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.batches.collate import TARGETS, Batch, make_batch, without_unused_slots
from kexue_train.batches.labelled import Arrays, LabelledDataset, target_of
from kexue_train.batches.loader import Plan, iter_batches, read_ahead
from kexue_train.batches.mixed import MixedDataset, TrainingData
from kexue_train.batches.source_labels import label_by_source
from kexue_train.samples.mlm import IGNORE_INDEX, MaskingRates
from kexue_train.samples.task_kinds import WORDS
from kexue_train.train.job import JobConfig
from kexue_train.train.phases import Phase

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class PhaseData:
    """What this rank reads in a phase."""

    phase: Phase
    rows_per_epoch: int
    rows_skipped: int
    """Rows of the same samples that were skipped after spikes."""
    batches: Generator[Tensors]
    """Micro-batches, without end; close it."""
    heldout: list[Tensors]
    """This rank's share of the held-out rows."""
    tasks_of_step: Callable[[int], Mapping[str, int]]
    """Micro-batches of each task over all ranks in step number ``step``, from 1."""

    def epoch(self, step: int) -> float:
        """Return the passes over the samples after ``step`` steps."""
        return (self.phase.rows(step) + self.rows_skipped) / self.rows_per_epoch


def open_phase_data(
    config: JobConfig, phase: Phase, dataset: TrainingData, step: int, device: torch.device, rows_skipped: int
) -> PhaseData:
    """Start to read for the steps of ``phase`` after ``step`` steps of training."""
    batches = training_batches(config, phase, dataset, step, device, rows_skipped)
    heldout = heldout_batches(config, phase, dataset)
    tasks = partial(micro_batches_of_step, config.seed, phase, dataset, rows_skipped)
    return PhaseData(phase, dataset.num_training_rows, rows_skipped, batches, heldout, tasks)


def micro_batches_of_step(
    seed: int, phase: Phase, dataset: TrainingData, rows_skipped: int, step: int
) -> Mapping[str, int]:
    """Return how many micro-batches of each task step number ``step``, from 1, has over all ranks."""
    size = phase.micro_batch_size
    first, number = (phase.rows(step - 1) + rows_skipped) // size, phase.global_batch_size // size
    if isinstance(dataset, MixedDataset):
        return Counter(dataset.task_at(place, seed)[0] for place in range(first, first + number))
    return {WORDS: number}


def training_batches(
    config: JobConfig, phase: Phase, dataset: TrainingData, step: int, device: torch.device, rows_skipped: int
) -> Generator[Tensors]:
    """Yield this rank's micro-batches of ``phase`` after ``step`` steps and the skipped rows, without end."""
    plan = Plan(
        seed=config.seed,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        micro_batch_size=phase.micro_batch_size,
        accumulation_steps=phase.accumulation_steps,
        global_batch_size=phase.global_batch_size,
        rows_before=phase.rows_before + rows_skipped,
        rates=_rates(config),
    )
    done, processes = step - phase.first_step, config.train.workers.num_loader_workers
    return read_ahead(pinned(iter_batches(dataset, plan, start_step=done, num_processes=processes), device))


def heldout_batches(config: JobConfig, phase: Phase, dataset: TrainingData) -> list[Tensors]:
    """Return this rank's share of the held-out rows, masked once and for all (epoch 0).

    All ranks have as many batches, since under ZeRO 3 they compute together; a rank short of rows takes one unlabelled.
    """
    if isinstance(dataset, MixedDataset):
        words = heldout_batches(config, phase, dataset.words) if dataset.words else []
        return words + [batch for task in dataset.tasks for batch in _heldout_of_task(phase, task)]
    rows = dataset.heldout_rows
    batches = []
    for piece in _own_pieces(rows, phase.micro_batch_size):
        chosen = piece if len(piece) else rows[:1]
        made = make_batch(dataset, chosen, 0, seed=config.seed, rates=_rates(config))
        by_source = label_by_source(dataset, chosen, made)
        batch = to_tensors(made) | to_tensors(by_source)
        if not len(piece):
            labels = [*(target.labels for target in TARGETS), *by_source]
            batch |= {name: torch.full_like(batch[name], IGNORE_INDEX) for name in labels}
        batches.append(batch)
    return batches


def source_names(dataset: TrainingData) -> tuple[str, ...]:
    """Return the sources of the sample rows among what is read, by which held-out batches have labels."""
    words = dataset.words if isinstance(dataset, MixedDataset) else dataset
    return words.sources if words else ()


def _heldout_of_task(phase: Phase, task: LabelledDataset) -> list[Tensors]:
    rows, batches, target = task.heldout_rows, [], target_of(task.name)
    for piece in _own_pieces(rows, phase.micro_batch_size):
        batch = to_tensors(task.make_batch(piece if len(piece) else rows[:1]))
        batches.append(batch if len(piece) else {name: batch[name] for name in batch.keys() - set(target)})
    return batches


def _own_pieces(rows: np.ndarray, most: int) -> list[np.ndarray]:
    """Return this rank's share of ``rows`` in pieces of at most ``most``, on every rank as many; some may be empty."""
    ranks = dist.get_world_size()
    own = rows[dist.get_rank() :: ranks]
    return np.array_split(own, math.ceil(len(rows) / (ranks * most))) if len(rows) else []


def first_batch(config: JobConfig, dataset: TrainingData, size: int) -> Tensors:
    """Return a micro-batch of the first ``size`` rows, of tasks of those that take most, to try out what fits."""
    if isinstance(dataset, MixedDataset):
        task = max(dataset.tasks, key=lambda task: task.mean_per_row("tokens"))
        if dataset.words is None or task.mean_per_row("tokens") > dataset.words.seq_len:
            return to_tensors(task.make_batch(task.rows_at(np.arange(size), config.seed)))
        dataset = dataset.words
    rows, epochs = dataset.rows_at(np.arange(size), config.seed)
    return to_tensors(make_batch(dataset, rows, epochs, seed=config.seed, rates=_rates(config)))


def _rates(config: JobConfig) -> MaskingRates:
    return MaskingRates(**config.train.objective.masking.model_dump())


def to_tensors(batch: Batch | Arrays | dict[str, np.ndarray]) -> Tensors:
    """Return the arrays as tensors, without a copy."""
    return {name: torch.from_numpy(array) for name, array in cast(dict[str, np.ndarray], batch).items()}


def pinned(batches: Generator[Batch | Arrays, None, None], device: torch.device) -> Generator[Tensors, None, None]:
    """Yield the micro-batches as tensors, in page-locked memory if ``device`` is a CUDA one; closing this closes them.

    On a CPU, which gains nothing from shapes that never change, without the unused slots.
    """
    with closing(batches):
        for batch in batches:
            tensors = to_tensors(batch if device.type == "cuda" else without_unused_slots(batch))
            if device.type == "cuda":
                torch.cuda.set_device(device)  # of this thread: else memory of device 0 would be taken
                tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
            yield tensors


def to_device(tensors: Tensors, device: torch.device) -> Tensors:
    """Copy the tensors to ``device``."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
