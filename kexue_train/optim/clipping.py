"""Gradient clipping in its two published forms, as a factor that stays on the device.

    hard:  g · min(1, γ/‖g‖)         a gradient no longer than γ is left alone
    soft:  g · γ/(‖g‖ + γ)           the step that (L0, L1)-smoothness asks for, with γ = L0/L1; ½ to 1 of the hard one

Which norm: with ``accumulate: gradient``, the global norm of the step's mean gradient over all tensors. With
``accumulate: momentum`` that norm is never known, as a gradient is folded and freed before the next one exists: there
each tensor's gradient of each micro-batch is clipped by its own norm, which only re-weights micro-batches in the
momentum. (And makes the step depend on how the batch was cut into micro-batches and over ranks.)

Source: https://kexue.fm/archives/7469; Zhang et al., "Why gradient clipping accelerates training",
https://arxiv.org/abs/1905.11881.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

ClipForm = Literal["hard", "soft"]


def clip_factor(norm: Tensor, limit: float, form: ClipForm) -> Tensor:
    """What to multiply gradients of norm ``norm`` by; never waits for a device.

    Args:
        norm: Norms of unscaled gradients, any shape, at least fp32.
        limit: γ, above 0.
        form: "hard" or "soft".

    Returns:
        Same shape and dtype, in [0, 1]: 1 for a norm of 0, 0 for an infinite one, NaN for NaN. A gradient with a NaN or
        Inf still has one after it has been multiplied by the factor of its own or of a joint norm.

    Raises:
        ValueError: If ``limit`` is not positive.
    """
    if not limit > 0:
        raise ValueError(f"clipping needs limit > 0, got {limit=}; leave clipping out instead of limiting to nothing")
    if form == "soft":
        return limit / (norm + limit)
    return (limit / norm).clamp_max(1.0)


def square_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares of each tensor: [tensors], at least fp32, on the tensors' device.

    Pieces add up: that of a whole is the sum (over ranks: the all-reduced sum) of those of its parts.

    Args:
        tensors: At least one, all on one device; any shapes, also empty ones, and any floating dtypes.

    Raises:
        ValueError: If there are none, for then there is no device either.
    """
    if not tensors:
        raise ValueError("the norms of no tensors have no device; a rank without a piece adds zeros of its own")
    dtype = max((torch.promote_types(t.dtype, torch.float32) for t in tensors), key=lambda d: d.itemsize)
    return torch.stack(torch._foreach_norm(list(tensors), 2.0, dtype)).square()


def joint_norm(squares: Tensor) -> Tensor:
    """Euclidean norm of several tensors together, 0-dim, from the sums of squares of each, [tensors].

    A tensor whose sum is NaN or infinite does not count: its gradient is left out of the step, and must not decide how
    far the others go.
    """
    return torch.where(torch.isfinite(squares), squares, 0.0).sum().sqrt()


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all elements of all tensors together, as ``joint_norm`` of their ``square_norms``."""
    return joint_norm(square_norms(tensors))
