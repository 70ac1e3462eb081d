"""Projection onto the vocabulary and cross-entropy in one, some rows at a time: the [N, V] logits never exist whole."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
_ROWS_AT_A_TIME = {"cpu": 512, "cuda": 4096}


class LabelScores(NamedTuple):
    """Sums over the labels that count, scalars of fp32 (fp64 for fp64 inputs). Only ``loss`` is differentiable."""

    loss: Tensor
    """Σ −log softmax(hidden · weightᵀ)[label], in nats."""
    correct: Tensor
    """Labels that have the largest logit."""
    num_labels: Tensor
    """Labels that are not -100."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, *, rows_at_a_time: int | None = None
) -> LabelScores:
    """Score ``hidden`` against ``labels`` through the projection ``weight``.

    The forward pass also makes the gradients, from each chunk's logits while they exist, so memory is one chunk's
    logits (``rows_at_a_time`` · V values of fp32) and the two gradients. Products run in autocast's dtype where it is
    on, sums and softmax in fp32 or wider. Without a single label that counts, loss and gradients are 0.

    Args:
        hidden: [N, E], floating point.
        weight: [V, E], floating point.
        labels: [N], int64: 0 to V - 1, or -100 for a row that counts for nothing.
        rows_at_a_time: Rows of a chunk; more take more memory, and fewer sweeps over ``weight``. None: 512 on a CPU,
            whose caches they fit, and 4096 on a GPU, which they fill.

    Raises:
        ValueError: If shapes do not fit or ``rows_at_a_time`` is not positive.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"hidden {list(hidden.shape)}, weight {list(weight.shape)} and labels {list(labels.shape)} do not fit; "
            "expected [N, E], [V, E] and [N]"
        )
    if rows_at_a_time is None:
        rows_at_a_time = _ROWS_AT_A_TIME.get(hidden.device.type, _ROWS_AT_A_TIME["cpu"])
    if rows_at_a_time < 1:
        raise ValueError(f"rows_at_a_time={rows_at_a_time}: give at least 1")
    device = hidden.device.type
    product_dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    wants_gradients = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    arguments = hidden, weight, labels, rows_at_a_time, product_dtype, wants_gradients
    return LabelScores(*_LinearCrossEntropy.apply(*arguments))  # type: ignore[no-untyped-call]  # as torch has it


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        rows_at_a_time: int,
        product_dtype: torch.dtype,
        wants_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = torch.promote_types(weight.dtype, torch.float32)
        loss, correct, count = torch.zeros(3, dtype=wide, device=hidden.device).unbind()
        if wants_gradients:
            hidden_grad, weight_grad = torch.empty_like(hidden), None
        table = weight.to(product_dtype)
        # Products are in product_dtype by hand: autocast would cast the table again for every chunk.
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows_at_a_time):
                rows = slice(start, start + rows_at_a_time)
                states, targets = hidden[rows].to(product_dtype), labels[rows, None]
                counts = targets != IGNORE_INDEX
                index = targets.clamp(min=0)
                chunk = (states @ table.T).to(wide)
                picked = chunk.gather(1, index)
                largest, guess = chunk.max(1, keepdim=True)
                total = chunk.sub_(largest).exp_().sum(1, keepdim=True)
                loss += ((largest + total.log() - picked) * counts).sum()
                correct += (guess == targets).sum()
                count += counts.sum()
                if wants_gradients:  # softmax minus one-hot, in the place of the logits
                    chunk.mul_(counts / total).scatter_add_(1, index, -counts.to(wide))
                    error = chunk.to(product_dtype)
                    hidden_grad[rows] = error @ table
                    product = (error.T @ states).to(wide)
                    weight_grad = product if weight_grad is None else weight_grad.add_(product)
        if wants_gradients:
            if weight_grad is None:  # of no rows
                weight_grad = torch.zeros_like(weight)
            ctx.save_for_backward(hidden_grad, weight_grad.to(weight.dtype))
        ctx.mark_non_differentiable(correct, count)
        return loss, correct, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = (grad * loss_grad.to(grad.dtype) for grad in ctx.saved_tensors)
        return hidden_grad, weight_grad, None, None, None, None
