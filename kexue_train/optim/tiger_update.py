"""The rule of Tiger, as it runs on a CPU and under ZeRO; the Triton kernels compute the same.

With micro-batches t = 1, 2, ... of gradients g_t, k of them in a step (https://kexue.fm/archives/9512):

    m ← β' m + (1 - β)/k · g_t              β' = β on the first micro-batch of a step, 1 on the others
    θ ← θ - η · (sign(m) + λ θ)             after the last micro-batch of a step only

That is exactly Tiger on the averaged gradient, as m is linear in g between two decays: no gradient buffer is needed.
α is the learning rate, RMS the root mean square of the parameter before the step, at least ``RMS_FLOOR``:

    role          η                    λ
    matrix        α · RMS(θ)           weight decay
    embedding     α · RMS(each row)    weight decay
    vector        α / 2                0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kexue_train.optim.param_groups import Role
from kexue_train.optim.rules import Moment, with_numbers

RMS_FLOOR = 1e-3
"""Tensors and rows smaller than this step as if they had this root mean square; otherwise zeros would stay zeros."""


@torch.no_grad()
def fold_gradient_(momentum: Tensor, grad: Tensor, *, decay: float | Tensor, weight: float, is_first: bool) -> None:
    """Fold the gradient of one micro-batch into ``momentum``, in place.

    Args:
        momentum: Any shape.
        grad: Same shape.
        decay: β, which only the first micro-batch of a step applies.
        weight: (1 - β)/k.
        is_first: Whether this is the first micro-batch of its step.
    """
    if is_first:
        momentum.mul_(decay)
    momentum.add_(grad, alpha=weight)


@torch.no_grad()
def move_parameter_(
    param: Tensor,
    direction: Tensor,
    step: float | Tensor,
    decay: float | Tensor,
    shift: float | Tensor | None = None,
) -> None:
    """Move ``param`` in place: θ ← θ - (step · direction + decay · θ); ``direction`` is overwritten.

    Args:
        param: Any shape.
        direction: Same shape; sign(m) for Tiger.
        step: η, a number or a tensor that broadcasts.
        decay: η λ, of the same kind.
        shift: How far elements also move towards zero, none of them beyond it; of the same kind.
    """
    direction.mul_(step)
    if isinstance(decay, Tensor):
        direction.addcmul_(param, decay)
    else:
        direction.add_(param, alpha=decay)
    if shift is not None:
        direction.add_(param.clamp(-shift, shift))  # type: ignore[arg-type]  # both bounds are of one kind
    param.sub_(direction)


@torch.no_grad()
def tiger_update_(
    param: Tensor, momentum: Tensor, *, role: Role, lr: float, weight_decay: float, rms_floor: float = RMS_FLOOR
) -> None:
    """Move one parameter in place at the end of a step, as ``Tiger`` does it for all parameters.

    Args:
        param: Any shape; for ``Role.EMBEDDING`` rows along all but the last dimension.
        momentum: Same shape.
        role: Which scaling rule applies.
        lr: Learning rate after the schedule.
        weight_decay: λ; ignored for vectors.
        rms_floor: Least root mean square.
    """
    rule = TigerRule(rms_floor=rms_floor)
    if role is Role.VECTOR:
        move_parameter_(param, rule.direction([momentum], 1), 0.5 * lr, 0.0)
        return
    mean_square = param.square().mean(-1, keepdim=True) if role is Role.EMBEDDING else param.square().mean()
    step = lr * mean_square.sqrt().clamp_min(rms_floor)
    move_parameter_(param, rule.direction([momentum], 1), step, step * weight_decay)


@dataclass(frozen=True)
class TigerRule:
    """The ``Rule`` of Tiger: one momentum, its sign, and steps scaled by the size of the tensor or row."""

    beta: float = 0.965
    rms_floor: float = RMS_FLOOR
    dead_zone: float = 0.0
    """Momenta below this in size count as zero; ends the slow drift that a forgotten gradient leaves behind."""

    @property
    def moments(self) -> tuple[Moment, ...]:
        """The momentum alone."""
        return (Moment("momentum", self.beta),)

    def with_settings(self, group: dict[str, Any]) -> TigerRule:
        """Return the rule with those of its numbers that a parameter group sets."""
        return with_numbers(self, group)

    def step_size(self, squares: Tensor, elements: Tensor, vector: Tensor) -> Tensor:
        """Return RMS(θ), and ½ for vectors."""
        rms = (squares / elements).sqrt().clamp_min(self.rms_floor)
        return torch.where(vector, 0.5, rms)

    def direction(self, moments: Sequence[Tensor], step: int) -> Tensor:  # noqa: ARG002  # no bias to correct
        """Return sign(m), and 0 in the dead zone."""
        sign = moments[0].sign()
        return sign.mul_(moments[0].abs() >= self.dead_zone) if self.dead_zone else sign
