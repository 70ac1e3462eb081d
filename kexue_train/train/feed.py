"""What a rank reads in a phase: its micro-batches, ahead of time, and its held-out rows."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np
import torch
import torch.distributed as dist

from kexue_train.batches.collate import TARGETS, make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.loader import Plan, iter_batches, read_ahead
from kexue_train.samples.mlm import IGNORE_INDEX, MaskingRates
from kexue_train.train.job import JobConfig
from kexue_train.train.phases import Phase
from kexue_train.train.tensors import Tensors, pinned, to_tensors


def training_batches(
    config: JobConfig, phase: Phase, dataset: SampleDataset, step: int, device: torch.device, rows_left_out: int
) -> Generator[Tensors]:
    """This rank's micro-batches of ``phase`` after ``step`` steps of training and rows left out, without end."""
    plan = Plan(
        seed=config.seed,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        micro_batch_size=phase.micro_batch_size,
        accumulation_steps=phase.accumulation_steps,
        global_batch_size=phase.global_batch_size,
        rows_before=phase.rows_before + rows_left_out,
        rates=_rates(config),
    )
    done, processes = step - phase.first_step, config.train.workers.num_loader_workers
    return read_ahead(pinned(iter_batches(dataset, plan, start_step=done, num_processes=processes), device))


def heldout_batches(config: JobConfig, phase: Phase, dataset: SampleDataset) -> list[Tensors]:
    """This rank's share of the held-out rows, masked once and for all (epoch 0).

    All ranks have as many batches, since under ZeRO 3 they compute together; a rank short of rows takes one unlabelled.
    """
    rows, ranks = dataset.heldout_rows, dist.get_world_size()
    if not len(rows):
        return []
    own = rows[dist.get_rank() :: ranks]
    batches = []
    for piece in np.array_split(own, math.ceil(len(rows) / (ranks * phase.micro_batch_size))):
        chosen = piece if len(piece) else rows[:1]
        batch = to_tensors(make_batch(dataset, chosen, 0, seed=config.seed, rates=_rates(config)))
        if not len(piece):
            batch |= {target.labels: torch.full_like(batch[target.labels], IGNORE_INDEX) for target in TARGETS}
        batches.append(batch)
    return batches


def first_batch(config: JobConfig, dataset: SampleDataset, size: int) -> Tensors:
    """A micro-batch of the first ``size`` rows, to try out what fits."""
    rows, epochs = dataset.rows_at(np.arange(size), config.seed)
    return to_tensors(make_batch(dataset, rows, epochs, seed=config.seed, rates=_rates(config)))


def _rates(config: JobConfig) -> MaskingRates:
    return MaskingRates(**config.train.objective.masking.model_dump())
