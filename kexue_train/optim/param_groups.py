"""The parameters of an optimizer: which rule of Tiger each follows, by the type of its module and never by its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from kexue_train.optim.rules import Rule


class Role(StrEnum):
    """How Tiger scales a parameter's step."""

    MATRIX = "matrix"
    """Times the root mean square of the whole tensor; decayed."""
    EMBEDDING = "embedding"
    """Times the root mean square of each row; decayed."""
    VECTOR = "vector"
    """Biases and gains: half the learning rate, no scaling, no decay."""


def build_param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Make one optimizer group per role, parameters in the model's order; a tied table counts as embedding.

    Each group has ``params``, ``names`` and ``positions`` (of the model's parameters) and ``role``.
    """
    tables = {
        id(p)
        for m in model.modules()
        if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        for p in m.parameters(recurse=False)
    }
    groups: dict[Role, dict[str, Any]] = {
        role: {"params": [], "names": [], "positions": [], "role": role} for role in Role
    }
    for position, (name, parameter) in enumerate(model.named_parameters()):
        if not parameter.requires_grad:
            continue
        role = Role.EMBEDDING if id(parameter) in tables else Role.MATRIX if parameter.ndim >= 2 else Role.VECTOR
        groups[role]["params"].append(parameter)
        groups[role]["names"].append(name)
        groups[role]["positions"].append(position)
    return [group for group in groups.values() if group["params"]]


@dataclass
class Tracked:
    """One parameter with what its optimizer keeps of it."""

    index: int
    name: str
    param: Tensor
    role: Role
    rule: Rule
    position: int
    """Place among the model's parameters; backward meets the last ones first."""
    moments: tuple[Tensor, ...] = ()
    place: int = 0
    """Place of its moments in the flat tensor of all moments."""
    folded: bool = False
    """Whether a gradient of the open step has been met."""


def track(groups: Sequence[dict[str, Any]], *, bf16: bool) -> list[Tracked]:
    """List the parameters of ``groups`` in order.

    Args:
        groups: With their ``rule``. Made by ``build_param_groups``, or without ``names``, ``positions`` and ``role``:
            then these follow from the order and the shape.
        bf16: Whether weights must be bfloat16.

    Raises:
        ValueError: If a parameter has another dtype, or is not contiguous.
    """
    tracked: list[Tracked] = []
    for group in groups:
        for number, param in enumerate(group["params"]):
            index = len(tracked)
            name = group["names"][number] if "names" in group else f"parameter {index}"
            position = group["positions"][number] if "positions" in group else index
            role = group["role"] or (Role.MATRIX if param.ndim >= 2 else Role.VECTOR)
            _check(name, param, bf16=bf16)
            tracked.append(Tracked(index, name, param, role, group["rule"], position))
    return tracked


def _check(name: str, param: Tensor, *, bf16: bool) -> None:
    if not param.is_contiguous():
        raise ValueError(f"{name} is not contiguous in memory; call .contiguous() on it before training")
    if (param.dtype == torch.bfloat16) != bf16 or param.dtype == torch.float16:
        raise ValueError(
            f"{name} is {param.dtype}: rounding to the nearest would lose most steps of half-precision weights (96 % "
            "of them in bfloat16 at a learning rate of 1e-4). Keep fp32 weights under torch.autocast, or take "
            "bf16_states=True, which needs bfloat16 weights and rounds them stochastically"
        )
