"""The loop of all fine-tuning: records in seeded order, AdaFactor, a schedule, and the weights of the best epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kexue_train.downstream.finetune.adafactor import AdaFactor
from kexue_train.downstream.finetune.child_tuning import ChildSteps, fisher_masks
from kexue_train.downstream.results.training import SeedRun
from kexue_train.downstream.settings import FitSettings
from kexue_train.foundation.counter_rng import Purpose, generator
from kexue_train.foundation.errors import TrainingError
from kexue_train.optim.schedule import piecewise_linear

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fit:
    """How training went; the weights of ``best_epoch`` are in the model."""

    losses: list[float]
    """Mean loss of every epoch."""
    scores: list[float]
    """What ``score`` said after every epoch; empty without it."""
    best_epoch: int
    """Counted from 1; the first of equals, and the last epoch without ``score``."""


def fit(
    model: nn.Module,
    num_records: int,
    loss_of: Callable[[Indices], Tensor],
    settings: FitSettings,
    *,
    seed: int,
    score: Callable[[], float] | None = None,
    on_step: Callable[[int, int], None] = lambda _done, _total: None,
) -> Fit:
    """Train ``model`` in place and leave it in evaluation mode.

    Args:
        model: All its parameters that require gradients move.
        num_records: How many there are to learn from.
        loss_of: Mean loss, a scalar tensor, of the records at some indices of ``range(num_records)``.
        settings: How long, how fast, with which extras.
        seed: Fixes the order of records, dropout and what ``gradient_keep`` keeps, ``0 <= seed < 2**32``.
        score: Called after every epoch, the model in evaluation mode; more is better, and the weights of the best
            epoch are kept.
        on_step: Receives steps done and in all.

    Raises:
        TrainingError: If the loss is not finite, or there is no Fisher information to choose elements by.
        ValueError: If there is no record.
    """
    if num_records < 1:
        raise ValueError(f"fit needs records to learn from, got {num_records=}")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = AdaFactor(parameters, lr=settings.lr)
    steps_per_epoch = math.ceil(num_records / settings.batch_size)
    total = steps_per_epoch * settings.epochs
    losses: list[float] = []
    scores: list[float] = []
    best: dict[str, Tensor] = {}
    with torch.random.fork_rng():
        masks: list[Tensor] = []
        if settings.keep_rule == "fisher":
            masks = fisher_masks(model, parameters, num_records, loss_of, settings.gradient_keep, seed=seed)
        steps = ChildSteps(parameters, optimizer, settings, seed, masks)
        torch.manual_seed(seed)
        for epoch in range(settings.epochs):
            model.train()
            order = generator(seed, Purpose.FINE_TUNING, epoch).permutation(num_records)
            found = []
            for number, batch in enumerate(np.array_split(order, steps_per_epoch), epoch * steps_per_epoch + 1):
                optimizer.param_groups[0]["lr"] = settings.lr * _multiplier(settings, number, total)
                found.append(_backward(parameters, loss_of, batch, settings, number))
                steps.move(number)
                optimizer.zero_grad(set_to_none=True)
                on_step(number, total)
            losses.append(float(np.mean(found)))
            model.eval()
            if score is not None:
                scores.append(score())
                if scores[-1] > max(scores[:-1], default=-math.inf):
                    best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    if best:
        model.load_state_dict(best)
    return Fit(losses, scores, scores.index(max(scores)) + 1 if scores else settings.epochs)


class Trainable(Protocol):
    """What ``train_seed`` asks of a problem."""

    @property
    def metric(self) -> str:
        """The metric that chooses the epoch."""

    @property
    def num_examples(self) -> int:
        """What an epoch goes through."""

    def loss(self, model: Any, indices: Indices) -> Tensor:
        """Return the mean loss of the training examples at ``indices``."""

    def score(self, model: Any, split: str) -> dict[str, float]:
        """Return every metric on the split ``dev`` or ``test``."""


def train_seed(
    model: nn.Module,
    problem: Trainable,
    settings: FitSettings,
    splits: Iterable[str],
    *,
    seed: int,
    on_step: Callable[[int, int], None],
) -> SeedRun:
    """Train ``model`` on ``problem``, keep the epoch that is best on dev, and score every split.

    Raises:
        TrainingError: If the loss is not finite.
    """
    found = fit(
        model,
        problem.num_examples,
        lambda indices: problem.loss(model, indices),
        settings,
        seed=seed,
        score=lambda: problem.score(model, "dev")[problem.metric],
        on_step=on_step,
    )
    return SeedRun(
        seed=seed,
        best_epoch=found.best_epoch,
        losses=found.losses,
        dev_by_epoch=found.scores,
        scores={split: problem.score(model, split) for split in splits},
    )


def _backward(
    parameters: list[nn.Parameter],
    loss_of: Callable[[Indices], Tensor],
    batch: Indices,
    settings: FitSettings,
    step: int,
) -> float:
    """Compute the gradients of the mean loss of ``batch``, flooded as a whole, however many pieces it is in."""
    mean = 0.0
    for piece in np.array_split(batch, min(settings.accumulation_steps, len(batch))):
        loss, share = loss_of(piece), len(piece) / len(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"fine-tuning step {step}: the loss is {value}; lower the learning rate {settings.lr}")
        (share * loss).backward()  # type: ignore[no-untyped-call]  # torch does not type it
        mean += share * value
    if not settings.flood_level:
        return mean
    above = mean - settings.flood_level  # |L - b| + b has the gradient of L, times the sign of L - b
    if above <= 0:
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(float(np.sign(above)))
    return abs(above) + settings.flood_level


def _multiplier(settings: FitSettings, step: int, total: int) -> float:
    """Return the share of the learning rate at ``step`` in 1...total: up to 1 in the warm-up, then down; never zero."""
    warmup = max(1, round(settings.warmup * total))
    return piecewise_linear({warmup: 1.0, total + 1: 0.0}, step)
