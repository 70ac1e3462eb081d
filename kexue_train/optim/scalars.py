"""How far each tensor or row moves in a step, and how much of it is dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from kexue_train.optim.layout import ScalarLayout
from kexue_train.optim.param_groups import Role
from kexue_train.optim.tracked import Tracked
from kexue_train.optim.weissi import weissi_drop


def decide_scalars(
    groups: Sequence[dict[str, Any]],
    tensors: Sequence[Tracked],
    layout: ScalarLayout,
    squares: Tensor,
    *,
    bad: Tensor,
    shrink: float,
    moving: Mapping[int, Tensor],
    weissi: float,
) -> tuple[Tensor, Tensor]:
    """``step`` and ``drop`` of θ ← θ - (step · direction + drop · θ), one for each scalar of the layout.

    Everything stays on the device. A learning rate may be a tensor there, so that a captured graph can be replayed
    with another one.

    Args:
        groups: Parameter groups, in the order of ``tensors``.
        tensors: What is moved.
        layout: Of the scalars.
        squares: Sums of squares of the parameters, [total].
        bad: Which tensors had a gradient that was not finite, bool [tensors].
        shrink: What is left of such a tensor.
        moving: By index of a table, which of its rows may move, bool [rows].
        weissi: λ₁ of the penalty λ₁ Σ log‖W‖.
    """
    lr, decay = (_spread(groups, layout, squares, key) for key in ("lr", "weight_decay"))
    vector = layout.mask(Role.VECTOR)
    sizes = [
        tensor.rule.step_size(square, elements, flag)
        for tensor, square, elements, flag in zip(
            tensors, layout.split(squares), layout.split(layout.elements), layout.split(vector), strict=True
        )
    ]
    step = lr * torch.cat(sizes)
    drop = torch.where(vector, 0.0, step * decay)
    if weissi:
        drop += torch.where(layout.mask(Role.MATRIX), weissi_drop(squares, lr=lr, log_norm=weissi), 0.0)
    for index, rows in moving.items():
        for scalars in (step, drop):
            layout.split(scalars)[index].mul_(rows)
    bad = layout.spread(bad)
    return step.masked_fill(bad, 0.0), drop.masked_fill(bad, 1 - shrink)


def _spread(groups: Sequence[dict[str, Any]], layout: ScalarLayout, like: Tensor, key: str) -> Tensor:
    """A setting of the groups for each scalar."""
    values, counts = torch.empty_like(like), iter(layout.counts)
    start = 0
    for group in groups:
        end = start + sum(next(counts) for _ in group["params"])
        values[start:end].fill_(group[key])
        start = end
    return values
