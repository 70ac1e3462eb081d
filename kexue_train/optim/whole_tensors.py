"""Whole tensors: large ones of Tiger on a CPU by ``cpu_tiger``, all others with plain torch operations.

Those take a tensor on a CPU in pieces that fit its cache, on a GPU at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kexue_train.optim.cpu_tiger import kernels_for
from kexue_train.optim.param_groups import Role, Tracked
from kexue_train.optim.random_bits import PARAMETER, Rounding, part_number
from kexue_train.optim.rules import Rule
from kexue_train.optim.step_sizes import ScalarLayout, StepSizes
from kexue_train.optim.tiger_update import TigerRule, fold_gradient_, move_parameter_

_PIECE = 1 << 18
"""Elements of a piece for each thread of a CPU: few enough that momentum, parameter and direction stay in its caches,
enough that starting an operation takes no time beside it; with half as many a step takes a tenth longer."""


class WholeTensors:
    """A ``TensorStorage`` of parameters and moments that are whole on every rank."""

    def __init__(self, tensors: Sequence[Tracked], layout: ScalarLayout) -> None:
        self._tensors, self._layout = tensors, layout

    def fold(self, index: int, grad: Tensor, *, is_first: bool, share: float, rounding: Rounding) -> Tensor | bool:
        """Take a gradient into the moments of the ``index``-th tensor; see ``fold_tensor_``."""
        tensor = self._tensors[index]
        return fold_tensor_(
            tensor.rule, tensor.moments, grad, is_first=is_first, share=share, rounding=rounding, number=index
        )

    def flush(self) -> None:
        """Do nothing: gradients are folded at once."""

    def sum_squares(self) -> Tensor:
        """Return the sums of squares of the parameters, [total] of the layout, 0 for vectors, at least fp32."""
        params = [tensor.param for tensor in self._tensors]
        dtype = torch.promote_types(params[0].dtype, torch.float32)
        sums = torch.empty(self._layout.total, dtype=dtype, device=self._layout.device)
        for param, role, target in zip(params, self._layout.roles, self._layout.split(sums), strict=True):
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

    def sum_absolutes(self) -> Tensor:
        """Return the sums of absolute values of the matrices, [total] of the layout, 0 for others, at least fp32."""
        dtype = torch.promote_types(self._tensors[0].param.dtype, torch.float32)
        sums = torch.zeros(self._layout.total, dtype=dtype, device=self._layout.device)
        for tensor, target in zip(self._tensors, self._layout.split(sums), strict=True):
            if tensor.role is Role.MATRIX:
                target.copy_(torch.linalg.vector_norm(tensor.param, 1, dtype=dtype))
        return sums

    def move(self, sizes: StepSizes, *, step: int, rounding: Rounding) -> None:
        """Move all parameters by step number ``step``."""
        for tensor, own in zip(self._tensors, sizes.split(self._layout.counts), strict=True):
            if tensor.rests or not tensor.param.numel():
                continue
            move_tensor_(
                tensor.rule, tensor.param, tensor.moments, own, step=step, rounding=rounding,
                number=tensor.index,
            )  # fmt: skip


def allocate_moments(tensors: Sequence[Tracked]) -> tuple[Tensor, list[int]]:
    """Make all moments views of one flat tensor of zeros, those first whose gradients come first.

    Tensors of 2, 3 and 4 elements with one moment each lie in the order 4, 3, 2, so they end at 4, 7 and 9 and their
    places are 2, 1 and 0.

    Returns:
        The flat tensor, and where the moments of each tensor end in it, by place.
    """
    order = sorted(tensors, key=lambda tensor: -tensor.position)
    sizes = [tensor.param.numel() for tensor in order for _ in tensor.rule.moments]
    flat = torch.zeros(sum(sizes), dtype=tensors[0].param.dtype, device=tensors[0].param.device)
    views, ends = iter(torch.split(flat, sizes)), [0]
    for place, tensor in enumerate(order):
        tensor.place = place
        tensor.moments = tuple(next(views).view(tensor.param.shape) for _ in tensor.rule.moments)
        ends.append(ends[-1] + tensor.param.numel() * len(tensor.moments))
    return flat, ends[1:]


def fold_tensor_(
    rule: Rule,
    moments: Sequence[Tensor],
    grad: Tensor,
    *,
    is_first: bool,
    share: float,
    rounding: Rounding,
    number: int,
) -> Tensor | bool:
    """Take the gradient of one micro-batch into the moments of its tensor, in place, unless it is not finite.

    Args:
        rule: Says which moments.
        moments: Moments of the tensor or of a slice of it, contiguous.
        grad: Gradient of the micro-batch's mean loss, of as many elements.
        is_first: Whether it is the first of its step.
        share: Weight of the micro-batch in the step.
        rounding: For bf16 moments.
        number: Index of the tensor.

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
        # On a GPU a bad gradient is folded as zeros and without the decay, which leaves the moment as it was.
        decay = torch.where(bad, 1.0, moment.beta) if is_first and isinstance(bad, Tensor) else moment.beta
        weight = (1 - moment.beta) * share
        kernels = kernels_for(kept, grad) if moment.power == 1 else None
        if kernels:
            kernels.fold_(
                kept, grad, decay=moment.beta if is_first else 1.0, weight=weight,
                rounding=rounding, number=part_number(number, index),
            )  # fmt: skip
            continue
        for start, (state, piece) in _pieces(kept, grad.contiguous()):
            value = state.to(torch.promote_types(state.dtype, torch.float32))  # itself, if it is that wide
            part = piece.to(value.dtype)
            if moment.power == 1:
                fold_gradient_(value, part, decay=decay, weight=weight, is_first=is_first)
            else:
                if is_first:
                    value.mul_(decay)
                value.addcmul_(part, part, value=weight)
            if value is not state:
                rounding.store(state, value, number=part_number(number, index), offset=start)
    return bad


def move_tensor_(
    rule: Rule,
    param: Tensor,
    moments: Sequence[Tensor],
    sizes: StepSizes,
    *,
    step: int,
    rounding: Rounding,
    number: int,
) -> None:
    """Move one tensor in place, as ``StepSizes`` says.

    Args:
        rule: Gives the direction.
        param: The tensor.
        moments: Moments of the tensor.
        sizes: One number each, or one per row; zero for what must not move.
        step: Number of the step, from 1.
        rounding: For bf16 parameters.
        number: Index of the tensor.
    """
    is_sign_step = isinstance(rule, TigerRule) and not rule.dead_zone and sizes.shift is None
    if is_sign_step and (kernels := kernels_for(param, moments[0])):
        kernels.move_(
            param, moments[0], sizes.step, sizes.decay, rounding=rounding, number=part_number(number, PARAMETER)
        )
        return
    # A table [1000, 64] has 1000 scalars and a width of 64. In pieces of 300 rows the second begins at element 19,200
    # and holds the rows 300 ... 599, so it takes the scalars [300:600] as a column beside its view [300, 64]. A tensor
    # with one scalar is cut anywhere (width 1), and on a CPU its scalars are plain numbers.
    rows = sizes.step.numel()
    width = param.numel() // max(rows, 1) if rows > 1 else 1
    as_numbers = rows == 1 and not param.is_cuda
    length, decay = (scalars.item() if as_numbers else scalars[:, None] for scalars in (sizes.step, sizes.decay))
    shift = None if sizes.shift is None else sizes.shift.item() if as_numbers else sizes.shift[:, None]
    for start, (piece, *kept) in _pieces(param, *moments, width=width):
        value = piece.to(torch.promote_types(piece.dtype, torch.float32))
        direction = rule.direction([state.to(value.dtype) for state in kept], step)
        if isinstance(length, Tensor) and isinstance(decay, Tensor):
            own = slice(start // width, (start + piece.numel()) // width) if rows > 1 else slice(None)
            shape = (-1, width) if rows > 1 else (1, -1)
            shifts = shift[own] if isinstance(shift, Tensor) else None
            move_parameter_(value.view(shape), direction.view(shape), length[own], decay[own], shifts)
        else:
            move_parameter_(value, direction, length, decay, shift)
        if value is not piece:
            rounding.store(piece, value, number=part_number(number, PARAMETER), offset=start)


def _pieces(*tensors: Tensor, width: int = 1) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Yield flat views of the same place in tensors of one size, whole rows of ``width``, with their start.

    One thread takes pieces of up to 262,144 elements: with rows of 100,000 that are two rows, 200,000 elements, so that
    the third piece starts at 400,000. A row that is longer than a piece is one piece.
    """
    flats = [tensor.view(-1) for tensor in tensors]
    most = flats[0].numel() if flats[0].is_cuda else _PIECE * torch.get_num_threads()
    size = max(most // width, 1) * width
    if flats[0].numel() <= size:
        yield 0, tuple(flats)
        return
    for number, pieces in enumerate(zip(*(torch.split(flat, size) for flat in flats), strict=True)):
        yield number * size, pieces
