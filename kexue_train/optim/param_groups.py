"""Which rule of Tiger a parameter follows, decided by the type of its module, never by its name."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from torch import nn


class Role(StrEnum):
    """How Tiger scales a parameter's step."""

    MATRIX = "matrix"
    """Times the root mean square of the whole tensor; decayed."""
    EMBEDDING = "embedding"
    """Times the root mean square of each row; decayed."""
    VECTOR = "vector"
    """Biases and gains: half the learning rate, no scaling, no decay."""


def build_param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """One optimizer group per role, parameters in the model's order; a tied table counts as embedding.

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
