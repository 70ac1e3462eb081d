"""Where the scalars of each tensor lie in one vector: one per tensor, for embeddings one per row.

All of a step but the sign is decided in such vectors, of a few thousand numbers: sizes, learning rates, decay, which
tensors are bad, which rows move. Whole tensors, slices of tensors and fused kernels share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Size, Tensor

from kexue_train.optim.param_groups import Role


@dataclass(frozen=True)
class ScalarLayout:
    """Scalars of tensors in a given order.

    Args:
        shapes: Of each tensor.
        roles: Of each tensor.
        device: Of the vectors.
    """

    shapes: Sequence[Size]
    roles: Sequence[Role]
    device: torch.device

    @cached_property
    def counts(self) -> list[int]:
        """Scalars of each tensor."""
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
        """[tensors] -> [total]."""
        return per_tensor.repeat_interleave(self._counts, output_size=self.total)

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """[total] -> the scalars of each tensor, views."""
        return torch.split(vector, self.counts)

    @cached_property
    def _role_of(self) -> Tensor:
        return self.spread(torch.tensor([list(Role).index(role) for role in self.roles], device=self.device))

    def mask(self, role: Role) -> Tensor:
        """Which scalars belong to tensors of ``role``, bool [total]."""
        return self._role_of == list(Role).index(role)
