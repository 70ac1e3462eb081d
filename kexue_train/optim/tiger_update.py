"""Tiger in a few lines, to read and to test against; ``Tiger`` computes the same on all tensors at once."""

from __future__ import annotations

import torch
from torch import Tensor

from kexue_train.optim.param_groups import Role

RMS_FLOOR = 1e-3
"""Tensors and rows smaller than this step as if they had this root mean square; else zeros would stay zeros."""


@torch.no_grad()
def tiger_fold_(momentum: Tensor, grad: Tensor, *, beta: float, accumulation_steps: int, first: bool) -> None:
    """Fold the gradient of one micro-batch into ``momentum``, in place; ``first`` one of its window or not.

    Source: https://kexue.fm/archives/9512.
    """
    momentum.mul_(beta if first else 1.0).add_(grad, alpha=(1 - beta) / accumulation_steps)


@torch.no_grad()
def tiger_update_(
    param: Tensor, momentum: Tensor, *, role: Role, lr: float, weight_decay: float, rms_floor: float = RMS_FLOOR
) -> None:
    """Move ``param`` in place by one step along ``-sign(momentum)``, at the end of a window.

    Args:
        param: Any shape; for ``Role.EMBEDDING`` rows along all but the last dimension.
        momentum: Same shape.
        role: Which scaling rule applies.
        lr: Learning rate after the schedule.
        weight_decay: λ; ignored for vectors.
        rms_floor: Least root mean square.
    """
    if role is Role.VECTOR:
        param.sub_(0.5 * lr * momentum.sign())
        return
    square = param.square().mean(-1, keepdim=True) if role is Role.EMBEDDING else param.square().mean()
    step = lr * square.sqrt().clamp_min(rms_floor)
    param.sub_(step * (momentum.sign() + weight_decay * param))
