"""Tasks in conflict on one vector: quadratic losses with known gradients, trained by the library's own optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kexue_train.optim import build_param_groups
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.options import Options
from kexue_train.optim.rules import Rule, SgdmRule
from kexue_train.train.weighting.build import build_weights
from kexue_train.train.weighting.config import WeightingConfig
from kexue_train.train.weighting.scheme import TaskWeights

TASKS = ("a", "b", "c")
GUESSING = {"a": 0.7, "b": 2.0, "c": 5.0}
SIZE = 4000
_CURVATURES = {"a": 1.0, "b": 6.0, "c": 0.3}


class Conflict(nn.Module):
    """A shared vector that each task pulls its own way, and a head per task that only that one trains.

    The loss of a task is scale · (curvature/2 · mean of squares of (vector - target) + head²) + shift.
    """

    def __init__(self, scale: Mapping[str, float], shift: Mapping[str, float]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.targets = {task: torch.randn(SIZE, generator=generator) for task in TASKS}
        # Between the targets, so that the tasks pull apart: the cosines of their gradients are about -0.3.
        middle = torch.stack(list(self.targets.values())).mean(0)
        self.shared = nn.Parameter(middle + 0.3 * torch.randn(SIZE, generator=generator))
        self.heads = nn.ParameterDict({task: nn.Parameter(torch.ones(3)) for task in TASKS})
        self.scale, self.shift = scale, shift

    def loss(self, task: str) -> Tensor:
        pull = (self.shared - self.targets[task]).square().mean() * SIZE * _CURVATURES[task] / 2
        raw = pull / SIZE + self.heads[task].square().mean()
        return self.scale.get(task, 1.0) * raw + self.shift.get(task, 0.0)

    def gradients(self) -> Tensor:
        """Those of the tasks with respect to the shared vector, [tasks, SIZE]."""
        return torch.stack([torch.autograd.grad(self.loss(task), self.shared)[0] for task in TASKS]).double()


class Trainer:
    """The loop in small: weights, losses, backwards and steps.

    Args:
        config: Of the weighting.
        order: The tasks of the micro-batches of every step, of all ranks.
    """

    def __init__(
        self,
        config: WeightingConfig,
        order: Sequence[str] = ("a", "b", "c", "a"),
        *,
        rule: Rule = SgdmRule(0.5),  # noqa: B008  # frozen
        lr: float = 0.0,
        scale: Mapping[str, float] = {},
        shift: Mapping[str, float] = {},
        guessing: Mapping[str, float] = GUESSING,
        rank: int = 0,
        ranks: int = 1,
        **options: Any,
    ) -> None:
        self.model = Conflict(scale, shift)
        self.order, self.own = order, order[rank::ranks]
        defaults = {"lr": lr, "beta": rule.moments[0].beta, "weight_decay": 0.0}
        self.optimizer = HiddenAccumulation(
            build_param_groups(self.model), rule, defaults,
            accumulation_steps=len(self.own), options=Options(**options),
        )  # fmt: skip
        self.weights: TaskWeights = build_weights(
            config, guessing, micro_batches_per_step=len(order), seed=3, optimizer=self.optimizer,
            shared=[self.model.shared],
        )  # fmt: skip
        self.given: list[tuple[str, float]] = []
        """The weights of all micro-batches so far."""

    def begin_step(self) -> None:
        self.weights.begin_step({task: self.order.count(task) for task in set(self.order)})

    def micro_batch(self, task: str) -> None:
        loss = self.model.loss(task)
        weight = self.weights.weight(task, loss)
        (weight * loss).backward()
        self.optimizer.step()
        self.given.append((task, float(weight)))

    def step(self) -> None:
        self.begin_step()
        for task in self.own:
            self.micro_batch(task)
        self.weights.end_step()

    def update(self) -> Tensor:
        """The step's gradient with the weights of the last step, [SIZE]."""
        last = self.given[-len(self.own) :]
        gradients = dict(zip(TASKS, self.model.gradients(), strict=True))
        return torch.stack([weight * gradients[task] for task, weight in last]).mean(0)

    def parameters(self) -> Tensor:
        return torch.cat([value.detach().flatten() for value in self.model.parameters()])
