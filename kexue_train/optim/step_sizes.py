"""How far each tensor or row moves in a step, and how much of it decays: everything but the direction.

All of that is decided in vectors of a few thousand numbers: one for each tensor, for embeddings one for each row. Whole
tensors, slices of tensors and fused kernels share these vectors.

The penalty WEISSI (https://kexue.fm/archives/7681) joins the decay. It sees what a network computes and not how its
layers share out the scale: a network with positively homogeneous layers computes the same when its weights are scaled
by factors of product one, which in RoFormerV2 holds for the pairs (value, output) and (query, key) of attention and,
under ReLU, for the two matrices of the feed-forward. Weight decay can fall along that direction without any effect;
this can not:

    λ₁ Σ log‖W‖_F + λ₂ Σ ‖W‖₁/‖W‖_F          over the weight matrices W

The first term is unbounded below and its slope grows as 1/‖W‖; keep λ₁ small. The gradient of the second is orthogonal
to W: it moves all elements towards zero by one length and scales W up again, so that small ones vanish.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor

from kexue_train.optim.param_groups import Role, Tracked


@dataclass(frozen=True)
class ScalarLayout:
    """Where the scalars of each tensor lie in one vector, tensor by tensor.

    A matrix [4, 6], a table [3, 5] and a vector [7] have 1 + 3 + 1 = 5 scalars: ``counts`` are 1, 3 and 1, ``elements``
    are 24, 5, 5, 5 and 7, and the scalar of the table's last row has index 3.

    Args:
        shapes: Shape of each tensor.
        roles: Role of each tensor.
        device: Where the vectors lie.
    """

    shapes: Sequence[Size]
    roles: Sequence[Role]
    device: torch.device

    @cached_property
    def counts(self) -> list[int]:
        """Number of scalars of each tensor."""
        return [
            shape[:-1].numel() if role is Role.EMBEDDING else 1
            for shape, role in zip(self.shapes, self.roles, strict=True)
        ]

    @property
    def total(self) -> int:
        """Length of a vector."""
        return sum(self.counts)

    @cached_property
    def elements(self) -> Tensor:
        """Number of elements behind each scalar, int64 [total]."""
        sizes = [shape.numel() // max(count, 1) for shape, count in zip(self.shapes, self.counts, strict=True)]
        return self.spread(torch.tensor(sizes, device=self.device))

    @cached_property
    def _counts(self) -> Tensor:
        return torch.tensor(self.counts, device=self.device)

    def spread(self, per_tensor: Tensor) -> Tensor:
        """Repeat the value of each tensor for all of its scalars: [tensors] -> [total]."""
        return per_tensor.repeat_interleave(self._counts, output_size=self.total)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Return views of the scalars of each tensor: [total] -> one [count] per tensor."""
        return torch.split(vector, self.counts)

    @cached_property
    def _role_of(self) -> Tensor:
        return self.spread(torch.tensor([list(Role).index(role) for role in self.roles], device=self.device))

    def mask(self, role: Role) -> Tensor:
        """Return which scalars belong to tensors of ``role``, bool [total]."""
        return self._role_of == list(Role).index(role)


class StepSizes(NamedTuple):
    """Scalars of one step, each [total] of a layout, or of one tensor, or of some of its rows.

    θ ← θ - (step · direction + decay · θ + sign(θ) · min(shift, |θ|)), without the last term if there is no shift.
    """

    step: Tensor
    decay: Tensor
    shift: Tensor | None = None

    def split(self, counts: Sequence[int]) -> list[StepSizes]:
        """Return views of so many scalars each."""
        parts = (torch.split(scalars, list(counts)) for scalars in (self.step, self.decay))
        shifts = [None] * len(counts) if self.shift is None else torch.split(self.shift, list(counts))
        return list(map(StepSizes, *parts, shifts))

    def lines(self, lines: slice) -> StepSizes:
        """Return views of some scalars."""
        return StepSizes(self.step[lines], self.decay[lines], None if self.shift is None else self.shift[lines])


def decide_step_sizes(
    groups: Sequence[dict[str, Any]],
    tensors: Sequence[Tracked],
    layout: ScalarLayout,
    squares: Tensor,
    *,
    bad: Tensor,
    shrink: float,
    moving: Mapping[int, Tensor],
    weissi: float,
    absolutes: Tensor | None = None,
    weissi_sparsity: float = 0.0,
) -> StepSizes:
    """Decide how far everything moves.

    Everything stays on the device. A learning rate may be a tensor there, so that a captured graph can be replayed
    with another one.

    Args:
        groups: Parameter groups, in the order of ``tensors``.
        tensors: What is moved, but for those that rest.
        layout: Layout of the scalars.
        squares: Sums of squares of the parameters, [total].
        bad: Which tensors had a gradient that was not finite, bool [tensors].
        shrink: What is left of such a tensor.
        moving: By index of a table, which of its rows may move, bool [rows].
        weissi: λ₁ of the penalty λ₁ Σ log‖W‖ + λ₂ Σ ‖W‖₁/‖W‖.
        absolutes: Sums of absolute values of the matrices, [total]; needed for λ₂.
        weissi_sparsity: λ₂.
    """
    lr, weight_decay = (_spread_setting(groups, layout, squares, key) for key in ("lr", "weight_decay"))
    vector = layout.mask(Role.VECTOR)
    sizes = [
        tensor.rule.step_size(square, elements, flag)
        for tensor, square, elements, flag in zip(
            tensors, layout.split(squares), layout.split(layout.elements), layout.split(vector), strict=True
        )
    ]
    step = lr * torch.cat(sizes)
    decay = torch.where(vector, 0.0, step * weight_decay)
    if weissi:
        decay += torch.where(layout.mask(Role.MATRIX), weissi_decay(squares, lr=lr, log_norm=weissi), 0.0)
    shift = None
    if absolutes is not None:
        matrix = layout.mask(Role.MATRIX)
        found, growth = weissi_shift(squares, absolutes, lr=lr, sparsity=weissi_sparsity)
        shift = torch.where(matrix, found, 0.0)
        decay -= torch.where(matrix, growth, 0.0)
    for index, rows in moving.items():
        for scalars in (step, decay):
            layout.split(scalars)[index].mul_(rows)
    bad = layout.spread(bad)
    step, decay = step.masked_fill(bad, 0.0), decay.masked_fill(bad, 1 - shrink)
    decided = StepSizes(step, decay, None if shift is None else shift.masked_fill(bad, 0.0))
    for tensor, own in zip(tensors, decided.split(layout.counts), strict=True):
        if tensor.rests:
            for values in own:
                if values is not None:
                    values.zero_()
    return decided


def _spread_setting(groups: Sequence[dict[str, Any]], layout: ScalarLayout, like: Tensor, key: str) -> Tensor:
    """Return a setting of the groups for each scalar."""
    values, counts = torch.empty_like(like), iter(layout.counts)
    start = 0
    for group in groups:
        end = start + sum(next(counts) for _ in group["params"])
        value = group[key]
        values[start:end].fill_(value.view(()) if isinstance(value, Tensor) else value)
        start = end
    return values


def weissi_decay(square_norms: Tensor, *, lr: float | Tensor, log_norm: float) -> Tensor:
    """Return the share of W that a step on λ₁ log‖W‖ alone takes away, decoupled from the loss: W -= share · W.

    That is ``lr * log_norm / ‖W‖²``, but at most 1: a longer step would turn the matrix around. Zeros get 1 and stay
    zeros. Adds to weight decay.

    Args:
        square_norms: ‖W‖_F² of each matrix, any shape, at least fp32; of the whole matrix, also where it is sliced.
        lr: Learning rate after the schedule, at least 0; one, or one per matrix.
        log_norm: λ₁, at least 0.

    Returns:
        Same shape and dtype, in [0, 1].
    """
    tiny = torch.finfo(square_norms.dtype).tiny
    return (lr * log_norm / square_norms.clamp_min(tiny)).clamp_max(1.0)


def weissi_shift(
    square_norms: Tensor, absolutes: Tensor, *, lr: float | Tensor, sparsity: float
) -> tuple[Tensor, Tensor]:
    """Return what a step on λ₂ ‖W‖₁/‖W‖_F alone does, decoupled from the loss: W -= shift · sign(W) - growth · W.

    No element is to be shifted beyond zero. The growth keeps the norm, to first order; it is at most 1.

    Args:
        square_norms: As for ``weissi_decay``.
        absolutes: ‖W‖₁ of each matrix, same shape.
        lr: As for ``weissi_decay``.
        sparsity: λ₂, at least 0.

    Returns:
        ``lr λ₂ / ‖W‖`` and ``lr λ₂ ‖W‖₁ / ‖W‖³``, of the same shape and dtype.
    """
    squares = square_norms.clamp_min(torch.finfo(square_norms.dtype).tiny)
    shift = lr * sparsity / squares.sqrt()
    return shift, (shift * absolutes / squares).clamp_max(1.0)


def weissi_penalty(weights: Iterable[Tensor], *, log_norm: float, sparsity: float) -> Tensor:
    """Return the whole penalty as a term of a loss: 0-dim, at least fp32, differentiable.

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
