"""Fold and move whole tensors with plain torch operations: on a CPU in pieces that fit its cache, on a GPU at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kexue_train.optim.layout import ScalarLayout
from kexue_train.optim.param_groups import Role
from kexue_train.optim.rules import Rule
from kexue_train.optim.stochastic_rounding import PARAMETER, Rounding, part_number

_SHARE = 1 << 17
"""Elements of a piece for each thread of a CPU: few enough that momentum, parameter and direction stay in its caches,
enough that starting an operation takes no time beside it."""


def fold(
    rule: Rule, moments: Sequence[Tensor], grad: Tensor, *, first: bool, share: float, rounding: Rounding, number: int
) -> Tensor | bool:
    """Take the gradient of one micro-batch into the moments of its tensor, in place, unless it is not finite.

    Args:
        rule: Says which moments.
        moments: Of the tensor, contiguous.
        grad: Gradient of the micro-batch's mean loss, shaped as the tensor.
        first: Whether it is the first of its window.
        share: Of the micro-batch in the window.
        rounding: For bf16 moments.
        number: Of the tensor.

    Returns:
        Whether the gradient was *not* finite: a bool tensor (no host waits for a GPU), or a bool on a CPU.
    """
    total = grad.sum(dtype=torch.promote_types(grad.dtype, torch.float32))
    bad: Tensor | bool = ~torch.isfinite(total) if grad.is_cuda else not math.isfinite(total.item())
    if isinstance(bad, Tensor):
        grad = grad.masked_fill(bad, 0.0)
    elif bad:
        return True
    for index, (moment, kept) in enumerate(zip(rule.moments, moments, strict=True)):
        decay: float | Tensor = moment.beta if first else 1.0
        if first and isinstance(bad, Tensor):
            decay = torch.where(bad, 1.0, decay)
        for start, (state, piece) in _pieces(kept, grad.contiguous()):
            value = state.to(torch.promote_types(state.dtype, torch.float32))  # itself, if it is that wide
            part = piece.to(value.dtype)
            if first:
                value.mul_(decay)
            if moment.power == 1:
                value.add_(part, alpha=(1 - moment.beta) * share)
            else:
                value.addcmul_(part, part, value=(1 - moment.beta) * share)
            if value is not state:
                rounding.store(state, value, number=part_number(number, index), offset=start)
    return bad


def sum_squares(params: Sequence[Tensor], layout: ScalarLayout) -> Tensor:
    """Sums of squares, one for each scalar of the layout but 0 for vectors, [total], at least fp32."""
    dtype = torch.promote_types(params[0].dtype, torch.float32)
    sums = torch.empty(layout.total, dtype=dtype, device=layout.device)
    for param, role, target in zip(params, layout.roles, layout.split(sums), strict=True):
        if role is Role.VECTOR:
            target.zero_()
            continue
        # In pieces, since a norm of bf16 makes a wide copy first; by rows, which is faster and rounded less.
        width = max(param.shape[-1], 1)
        norms = [
            torch.linalg.vector_norm(piece.view(-1, width), dim=-1, dtype=dtype)
            for _, (piece,) in _pieces(param, width=width)
        ]
        rows = torch.cat(norms)
        target.copy_(rows if role is Role.EMBEDDING else torch.linalg.vector_norm(rows))
    return sums.square_()


def move(
    rule: Rule, param: Tensor, moments: Sequence[Tensor], step: Tensor, drop: Tensor, *, window: int,
    rounding: Rounding, number: int,
) -> None:  # fmt: skip
    """θ ← θ - (step · direction + drop · θ), in place.

    Args:
        rule: Gives the direction.
        param: The tensor.
        moments: Of the tensor.
        step: One number, or one per row; zero for what must not move.
        drop: The same, of decay.
        window: Number of the window, from 1.
        rounding: For bf16 parameters.
        number: Of the tensor.
    """
    rows = step.numel()
    width = param.numel() // max(rows, 1)
    scalars = (step.item(), drop.item()) if not param.is_cuda and rows == 1 else None
    for start, (piece, *kept) in _pieces(param, *moments, width=width if rows > 1 else 1):
        value = piece.to(torch.promote_types(piece.dtype, torch.float32))
        wide = [state.to(value.dtype) for state in kept]
        change = rule.direction(wide, window)
        if scalars:
            change.mul_(scalars[0]).add_(value, alpha=scalars[1])
        else:
            at = slice(start // width, (start + piece.numel()) // width) if rows > 1 else slice(None)
            shape = (-1, width) if rows > 1 else (1, -1)
            grid = change.view(shape)
            grid.mul_(step[at, None]).addcmul_(value.view(shape), drop[at, None])
        value.sub_(change)
        if value is not piece:
            rounding.store(piece, value, number=part_number(number, PARAMETER), offset=start)


def _pieces(*tensors: Tensor, width: int = 1) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Flat views of the same place in tensors of one size, whole rows of ``width``, with their start."""
    flats = [tensor.view(-1) for tensor in tensors]
    share = flats[0].numel() if flats[0].is_cuda else _SHARE * torch.get_num_threads()
    size = max(share // width, 1) * width
    for number, pieces in enumerate(zip(*(torch.split(flat, size) for flat in flats), strict=True)):
        yield number * size, pieces
