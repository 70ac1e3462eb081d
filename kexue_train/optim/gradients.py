"""What may happen to gradients before they are folded: averages, clipping, and dropout. Nothing waits for a device.

Clipping multiplies a gradient by a factor, in two published forms:

    hard:  g · min(1, γ/‖g‖)         a gradient no longer than γ is left alone
    soft:  g · γ/(‖g‖ + γ)           the step that (L0, L1)-smoothness asks for, with γ = L0/L1; ½ to 1 of the hard one

With ``accumulate: gradient`` the norm is the global one, of the step's mean gradient over all tensors. With
``accumulate: momentum`` that norm is never known, as a gradient is folded and freed before the next one exists: each
tensor's gradient of each micro-batch is clipped by its own norm, which only re-weights micro-batches in the momentum
(and makes the step depend on how the batch was cut into micro-batches and over ranks).

Dropout (Child-Tuning F) lets a random share p of the gradient's elements count in each step:

    g ← g ⊙ M / p          M ~ Bernoulli(p) per element, drawn anew at every step

The mean stays, the variance grows from σ² to σ² + (1-p)/p · (μ² + σ²). Adam answers with long-run steps smaller by √p;
a sign optimizer only sees which micro-gradients counted, and since M holds for the whole step its momentum just decays
where M = 0.

Sources: https://kexue.fm/archives/7469 and Zhang et al., "Why gradient clipping accelerates training",
https://arxiv.org/abs/1905.11881; https://kexue.fm/archives/8764 and Xu et al., "Raise a child in large language
model", https://arxiv.org/abs/2109.05687.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.optim.random_bits import random_bits
from kexue_train.optim.ranks import any_over_ranks, ranks

ClipForm = Literal["hard", "soft"]

_LEVELS = 2**16
_FIRST_STREAM = 2**62
"""Masks draw from the streams from here on; stochastic rounding has the streams below."""
_TENSOR_BITS = 24


@torch.no_grad()
def average_gradients_(
    gradients: list[Tensor],
    *,
    accumulation_steps: int,
    over_ranks: bool,
    clip_norm: float | None,
    clip_form: ClipForm,
) -> None:
    """Turn sums over the micro-batches of a step into means over these and the ranks, and clip them together.

    Every rank must have gradients of the same tensors.
    """
    share = 1 / accumulation_steps
    if over_ranks and ranks() > 1:
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()
        share /= ranks()
    torch._foreach_mul_(gradients, share)
    if clip_norm is not None:
        torch._foreach_mul_(gradients, clip_factor(global_norm(gradients), clip_norm, clip_form))


def dense_gradient(param: Tensor) -> Tensor:
    """Return the gradient of ``param``, sparse ones made dense; zeros if there is none on this rank."""
    if param.grad is None:
        return torch.zeros_like(param)
    return param.grad if param.grad.layout is torch.strided else param.grad.to_dense()


def complete_gradients_(params: Sequence[Tensor]) -> None:
    """Give a parameter whose gradient only other ranks have one of zeros; a collective call.

    Args:
        params: At least one, all on one device.
    """
    have = any_over_ranks([param.grad is not None for param in params], params[0].device)
    for param in compress(params, have):
        if param.grad is None:
            param.grad = torch.zeros_like(param)


def clip_factor(norm: Tensor, limit: float, form: ClipForm) -> Tensor:
    """Return what to multiply gradients of norm ``norm`` by.

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
    """Return the sum of squares of each tensor: [tensors], at least fp32, on the tensors' device.

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
    """Return the Euclidean norm of several tensors together, 0-dim, from the sums of squares of each, [tensors].

    A tensor whose sum is NaN or infinite does not count: its gradient is left out of the step, and must not decide how
    far the others go.
    """
    return torch.where(torch.isfinite(squares), squares, 0.0).sum().sqrt()


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm of all elements of all tensors together; see ``joint_norm``."""
    return joint_norm(square_norms(tensors))


def keep_mask(
    numel: int, *, keep: float, seed: int, step: int, tensor: int, offset: int = 0, device: torch.device | str
) -> Tensor:
    """Return which elements ``offset ... offset + numel - 1`` of a tensor count at ``step``.

    A function of its arguments alone: the same for all micro-batches of a step, on all ranks, and for a slice as for
    the whole.

    Args:
        numel: How many, at least 0.
        keep: p, in (0, 1]; acts as the nearest multiple of 2⁻¹⁶, which ``kept_share`` tells.
        seed: The run's seed, ``0 <= seed < 2**63``.
        step: The optimizer step, ``0 <= step < 2**38``.
        tensor: The tensor's number in the model, ``0 <= tensor < 2**24``.
        offset: First element, in the whole tensor read in row-major order.
        device: Where to make it.

    Returns:
        Shape (numel,), dtype bool.

    Raises:
        ValueError: If ``keep`` is out of range.
    """
    # The tensor has the low 24 bits, the step those above: tensor 7 of step 2 draws from stream 2⁶² + 2·2²⁴ + 7.
    stream = _FIRST_STREAM + (step << _TENSOR_BITS) + tensor
    bits = random_bits(numel, seed=seed, stream=stream, offset=offset, device=device)
    return bits < round(kept_share(keep) * _LEVELS)


def kept_share(keep: float) -> float:
    """Return the probability that ``keep`` stands for: a multiple of 2⁻¹⁶ and never 0.

    Raises:
        ValueError: If ``keep`` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"gradient dropout needs 0 < keep <= 1, got {keep=}; keep=1 drops nothing")
    return max(1, round(keep * _LEVELS)) / _LEVELS


@torch.no_grad()
def drop_gradient_(grad: Tensor, *, keep: float, seed: int, step: int, tensor: int, offset: int = 0) -> Tensor:
    """Multiply ``grad`` in place by M/p and return it; the arguments are those of ``keep_mask``.

    ``grad`` may be a whole gradient of any shape or, with ``offset``, a flat slice of one. NaN and Inf are not dropped:
    both become NaN where M = 0, so a test for finite gradients finds them afterwards too.
    """
    mask = keep_mask(
        grad.numel(), keep=keep, seed=seed, step=step, tensor=tensor, offset=offset, device=grad.device
    ).view(grad.shape)
    return grad.mul_(mask).div_(kept_share(keep))
