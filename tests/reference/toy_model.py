"""A toy model with one parameter of each of Tiger's roles, whose gradients can be chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

SHAPES = {"table": (7, 5), "matrix": (4, 6), "vector": (5,)}
ROLES = {"table": "embedding", "matrix": "matrix", "vector": "vector"}


class Toy(nn.Module):
    """An embedding table, a matrix and a vector; its loss is linear, so each gradient is what it is given."""

    def __init__(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        start = {name: torch.from_numpy(rng.standard_normal(shape)).to(dtype) for name, shape in SHAPES.items()}
        self.embedding = nn.Embedding(*SHAPES["table"], _weight=start["table"])
        self.matrix = nn.Parameter(start["matrix"])
        self.vector = nn.Parameter(start["vector"])

    def by_name(self) -> dict[str, nn.Parameter]:
        return {"table": self.embedding.weight, "matrix": self.matrix, "vector": self.vector}

    def backward(self, gradients: Mapping[str, np.ndarray], scale: float = 1.0) -> None:
        """Give every named parameter its gradient, through autograd."""
        terms = [
            (self.by_name()[name] * torch.from_numpy(g).to(self.matrix.dtype)).sum() for name, g in gradients.items()
        ]
        (torch.stack(terms).sum() * scale).backward()

    def numpy(self) -> dict[str, np.ndarray]:
        return {name: _numpy(parameter) for name, parameter in self.by_name().items()}


def draw_gradients(count: int, seed: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{name: rng.standard_normal(shape) for name, shape in SHAPES.items()} for _ in range(count)]


def stacked(gradients: Sequence[Mapping[str, np.ndarray]], name: str) -> list[np.ndarray]:
    return [gradient[name] for gradient in gradients]


def parameters_equal(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(left[name], right[name]) for name in left)


def _numpy(parameter: torch.Tensor) -> np.ndarray:
    """A copy; NumPy has no bfloat16."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True).numpy()
