"""A regulariser that sees what a network computes and not how its layers share out the scale (WEISSI).

A network with positively homogeneous layers computes the same when its weights are scaled by factors of product one;
in RoFormerV2 that holds for the pairs (value, output) and (query, key) of attention and, under ReLU, for the two
matrices of the feed-forward. Ordinary weight decay does not: it can fall without any effect. This one does:

    λ₁ Σ log‖W‖_F + λ₂ Σ ‖W‖₁/‖W‖_F          over the weight matrices W

The first term is unbounded below and its slope grows as 1/‖W‖; keep λ₁ small.

Source: https://kexue.fm/archives/7681.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def weissi_penalty(weights: Iterable[Tensor], *, log_norm: float, sparsity: float) -> Tensor:
    """The regulariser as a term of a loss: 0-dim, at least fp32, differentiable.

    Args:
        weights: At least one matrix, none of them all zeros (the value and the gradient would be infinite); any shapes,
            all on one device.
        log_norm: λ₁.
        sparsity: λ₂.
    """
    terms = []
    for weight in weights:
        matrix = weight.to(torch.promote_types(weight.dtype, torch.float32))
        norm = torch.linalg.vector_norm(matrix)
        terms.append(log_norm * norm.log() + sparsity * matrix.abs().sum() / norm)
    return torch.stack(terms).sum()


def weissi_drop(square_norms: Tensor, *, lr: float | Tensor, log_norm: float) -> Tensor:
    """The step on the first term alone, decoupled from the loss, as the share of W that it takes away: W -= drop · W.

    That is ``lr * log_norm / ‖W‖²``, but at most 1: a longer step would turn the matrix around. Zeros get 1 and stay
    zeros. Adds to what weight decay takes away.

    Args:
        square_norms: ‖W‖_F² of each matrix, any shape, at least fp32; of the whole matrix, also where it is sliced.
        lr: Learning rate after the schedule, at least 0; one, or one per matrix.
        log_norm: λ₁, at least 0.

    Returns:
        Same shape and dtype, in [0, 1].
    """
    tiny = torch.finfo(square_norms.dtype).tiny
    return (lr * log_norm / square_norms.clamp_min(tiny)).clamp_max(1.0)
