"""Trains one contender: held-out loss and NSP accuracy against processor seconds and tokens; measures speeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice

import torch

from benchmarks.optimizer_training import make_optimizer
from benchmarks.quality_contenders import Contender
from benchmarks.quality_learners import Learner, Task
from benchmarks.run_store import Outcome, Settings
from benchmarks.sample_batches import heldout_batches, training_batches
from kexue_train.batches.dataset import SampleDataset
from kexue_train.optim.build import AccumulatingOptimizer, set_learning_rate
from kexue_train.optim.schedule import Knots
from kexue_train.train.data import Tensors

_PROTOCOL = 1
"""A new number when the code changes what a run with the same settings learns."""
_WARMUP_SHARE, _FINAL_MULTIPLIER = 0.1, 0.05
_SPEED_STEPS = 3
Point = tuple[int, int, float, float, float]
"""(step, real tokens read, processor seconds, held-out loss of hidden tokens in nats, NSP accuracy or NaN)"""


def settings_of(kind: str, dataset: SampleDataset, task: Task, contender: Contender, lr: float, seed: int) -> Settings:
    """Return all that the outcome of a run depends on; ``kind``: which loop trains."""
    rule = asdict(contender.rule)
    return {
        "protocol": _PROTOCOL, "kind": kind, "samples": dataset.content_digest, **asdict(task),
        "contender": contender.name, "optimizer": rule, "lr": lr, "seed": seed,
    }  # fmt: skip


def train(dataset: SampleDataset, task: Task, contender: Contender, lr: float, seed: int) -> Outcome:
    """Train once: linear warm-up over 10 % of the steps, then down to 5 %; ends early where the loss is not finite.

    Returns:
        ``curve``: points, see ``Point``; seconds are those of forward, backward and optimizer; ``parameters``.
    """
    torch.manual_seed(seed)
    learner = contender.make(task, dataset)
    optimizer = optimizer_of(contender, learner, lr, seed)
    heldout = prepared_heldout(learner, dataset, task)
    curve: list[Point] = []
    tokens, seconds = 0, 0.0
    for step, batch in enumerate(training_batches(contender.reads(dataset), task.steps, task.rows, seed), 1):
        prepared = learner.prepare(batch)
        tokens += int((batch["sequence_ids"] > 0).sum())
        start = time.process_time()
        set_learning_rate(optimizer, multiplier(task, step))
        loss = take_step(learner, optimizer, prepared, task)
        seconds += time.process_time() - start
        if not math.isfinite(loss):
            curve.append((step, tokens, seconds, math.nan, math.nan))
            break
        if step in points(task):
            curve.append((step, tokens, seconds, *score(learner, heldout, task)))
    return {"curve": curve, "parameters": sum(p.numel() for p in learner.model.parameters())}


def take_step(learner: Learner, optimizer: AccumulatingOptimizer, prepared: Tensors, task: Task) -> float:
    """Forward, backward and optimizer on one micro-batch; returns the loss."""
    with task.autocast():
        loss = learner.loss(prepared)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def optimizer_of(contender: Contender, learner: Learner, lr: float, seed: int) -> AccumulatingOptimizer:
    """Build the contender's optimizer; AdamW is torch's fused one."""
    return make_optimizer(contender.rule, learner.model, lr=lr, accumulation_steps=1, seed=seed)


def multiplier(task: Task, step: int) -> float:
    """Return what the learning rate is multiplied by at ``step``, counted from 1."""
    return Knots({max(1, round(task.steps * _WARMUP_SHARE)): 1.0, task.steps: _FINAL_MULTIPLIER}).multiplier(step)


def points(task: Task) -> set[int]:
    """Return the steps after which an encoder is scored."""
    return {max(1, round(task.steps * number / task.points)) for number in range(1, task.points + 1)}


def prepared_heldout(learner: Learner, dataset: SampleDataset, task: Task) -> list[Tensors]:
    """Return the held-out rows in the form that ``learner`` takes."""
    return [learner.prepare(batch) for batch in heldout_batches(dataset, task.heldout_rows)]


@torch.no_grad()
def score(learner: Learner, heldout: Sequence[Tensors], task: Task) -> tuple[float, float]:
    """Return the mean loss of the hidden tokens in nats, and the share of right pairs; NaN without a head for these."""
    learner.model.eval()
    with task.autocast():
        words, pairs = torch.stack([learner.scores(batch) for batch in heldout]).sum(dim=0)
    learner.model.train()
    return float(words[0] / words[2]), float(pairs[1] / pairs[2])


def measure_speed(
    dataset: SampleDataset, task: Task, contenders: Sequence[Contender], rounds: int
) -> dict[str, list[float]]:
    """Return processor seconds per step, one value a round: all take the same batches in turn, each begins a round."""
    steps = {contender.name: _stepper(dataset, task, contender) for contender in contenders}
    batches = training_batches(dataset, (rounds + 1) * _SPEED_STEPS, task.rows, 0)
    found: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for number in range(rounds + 1):
        these = list(islice(batches, _SPEED_STEPS))
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = sum(map(steps[name], these)) / len(these)
            if number:  # the first round warms up
                found[name].append(seconds)
    return found


def _stepper(dataset: SampleDataset, task: Task, contender: Contender) -> Callable[[Tensors], float]:
    learner = contender.make(task, dataset)
    optimizer = optimizer_of(contender, learner, 1e-4, 0)

    def step(batch: Tensors) -> float:
        prepared = learner.prepare(batch)
        start = time.process_time()
        take_step(learner, optimizer, prepared, task)
        return time.process_time() - start

    return step
