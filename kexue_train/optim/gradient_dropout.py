"""Dropout on gradients (Child-Tuning F): of each step a random share ``keep`` of the gradient's elements counts.

    g ← g ⊙ M / p          M ~ Bernoulli(p) per element, drawn anew at every step

The mean stays, the variance grows from σ² to σ² + (1-p)/p · (μ² + σ²). Adam answers with long-run steps smaller by √p;
a sign optimizer only sees which micro-gradients counted, and since M holds for the whole window its momentum just
decays where M = 0.

Source: https://kexue.fm/archives/8764; Xu et al., "Raise a child in large language model",
https://arxiv.org/abs/2109.05687.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kexue_train.optim.random_bits import random_bits

_LEVELS = 2**16
_FIRST_STREAM = 2**62
"""Stochastic rounding has the streams below."""
_TENSOR_BITS = 24


def keep_mask(
    numel: int, *, keep: float, seed: int, step: int, tensor: int, offset: int = 0, device: torch.device | str
) -> Tensor:
    """Which elements ``offset ... offset + numel - 1`` of a tensor count at ``step``.

    A function of its arguments alone: the same for all micro-batches of a window, on all ranks, and for a slice as for
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
    stream = _FIRST_STREAM + (step << _TENSOR_BITS) + tensor
    bits = random_bits(numel, seed=seed, stream=stream, offset=offset, device=device)
    return bits < round(kept_share(keep) * _LEVELS)


def kept_share(keep: float) -> float:
    """The probability that ``keep`` stands for: a multiple of 2⁻¹⁶ and never 0.

    Raises:
        ValueError: If ``keep`` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"gradient dropout needs 0 < keep <= 1, got {keep=}; keep=1 drops nothing")
    return max(1, round(keep * _LEVELS)) / _LEVELS


@torch.no_grad()
def drop_gradient_(grad: Tensor, *, keep: float, seed: int, step: int, tensor: int, offset: int = 0) -> Tensor:
    """Multiply ``grad`` in place by M/p and return it; arguments as of ``keep_mask``.

    ``grad`` may be a whole gradient of any shape or, with ``offset``, a flat slice of one. NaN and Inf are not dropped:
    both become NaN where M = 0, so a test for finite gradients finds them afterwards too.
    """
    mask = keep_mask(
        grad.numel(), keep=keep, seed=seed, step=step, tensor=tensor, offset=offset, device=grad.device
    ).view(grad.shape)
    return grad.mul_(mask).div_(kept_share(keep))
