"""The parameters of an optimizer with what it keeps of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kexue_train.optim.param_groups import Role
from kexue_train.optim.rules import Rule


@dataclass
class Tracked:
    """One parameter, its rule and its moments."""

    index: int
    name: str
    param: Tensor
    role: Role
    group: dict[str, Any]
    position: int
    """Place among the model's parameters; backward meets the last ones first."""
    moments: tuple[Tensor, ...] = ()
    place: int = 0
    """Place among the flat tensor's parts."""
    folded: bool = False
    """Whether a gradient of the open window has been met."""

    @property
    def rule(self) -> Rule:
        """That of its group."""
        return self.group["rule"]  # type: ignore[no-any-return]  # torch types groups as Any


def track(groups: Sequence[dict[str, Any]], *, bf16: bool) -> Iterator[Tracked]:
    """The parameters of ``groups`` in order.

    Args:
        groups: With their ``rule``. Of ``build_param_groups``, or without ``names``, ``positions`` and ``role``: then
            these follow from the order and the shape.
        bf16: Whether weights must be bfloat16.

    Raises:
        ValueError: If a parameter has another dtype, or is not contiguous.
    """
    index = 0
    for group in groups:
        for number, param in enumerate(group["params"]):
            name = group["names"][number] if "names" in group else f"parameter {index}"
            position = group["positions"][number] if "positions" in group else index
            role = group["role"] or (Role.MATRIX if param.ndim >= 2 else Role.VECTOR)
            _check(name, param, bf16=bf16)
            yield Tracked(index, name, param, role, group, position)
            index += 1


def allocate_moments(tensors: Sequence[Tracked]) -> Tensor:
    """All moments as views of one flat tensor of zeros, those first whose gradients come first."""
    order = sorted(tensors, key=lambda tensor: -tensor.position)
    sizes = [tensor.param.numel() for tensor in order for _ in tensor.rule.moments]
    flat = torch.zeros(sum(sizes), dtype=tensors[0].param.dtype, device=tensors[0].param.device)
    views = iter(torch.split(flat, sizes))
    for place, tensor in enumerate(order):
        tensor.place = place
        tensor.moments = tuple(next(views).view(tensor.param.shape) for _ in tensor.rule.moments)
    return flat


def moment_ends(tensors: Sequence[Tracked]) -> list[int]:
    """Where the moments of each tensor end in the flat one, by place."""
    ends, end = [], 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.place):
        end += sum(moment.numel() for moment in tensor.moments)
        ends.append(end)
    return ends


def _check(name: str, param: Tensor, *, bf16: bool) -> None:
    if not param.is_contiguous():
        raise ValueError(f"{name} is not contiguous in memory; call .contiguous() on it before training")
    if (param.dtype == torch.bfloat16) != bf16 or param.dtype == torch.float16:
        raise ValueError(
            f"{name} is {param.dtype}: rounding to the nearest would lose most steps of half-precision weights (96 % "
            "of them in bfloat16 at a learning rate of 1e-4). Keep fp32 weights under torch.autocast, or take "
            "bf16_states=True, which needs bfloat16 weights and rounds them stochastically"
        )
