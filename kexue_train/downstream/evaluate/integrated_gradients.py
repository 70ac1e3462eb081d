"""Integrated gradients: how much each input moved a function from its value at a baseline.

    a = (x - x₀) ∫₀¹ ∇f(x₀ + t (x - x₀)) dt          Σ a = f(x) - f(x₀)   (completeness)

The integral is a weighted sum over a few t; the gap in completeness says whether they were enough.

Source: Sundararajan et al., https://arxiv.org/abs/1703.01365; https://kexue.fm/archives/7533, without its |·|, so that
words for and against the answer are told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rule = Literal["gauss", "trapezoid"]
_AT_ONCE = 32  # points of the path in one forward

Points = npt.NDArray[np.float64]


class Attribution(NamedTuple):
    """What was found."""

    values: Tensor
    """a, the shape of the input, fp64 on the CPU."""
    at_input: float
    """f(x)"""
    at_baseline: float
    """f(x₀)"""
    steps: int
    """Points of the path."""

    @property
    def gap(self) -> float:
        """Distance of Σ a from f(x) - f(x₀): what the points missed."""
        return abs(float(self.values.sum()) - (self.at_input - self.at_baseline))


def integrated_gradients(
    function: Callable[[Tensor], Tensor],
    inputs: Tensor,
    baseline: Tensor,
    *,
    steps: int,
    rule: Rule = "gauss",
) -> Attribution:
    """Attribute ``function(inputs) - function(baseline)`` to the elements of ``inputs``.

    Args:
        function: [n, ...] -> [n], differentiable, each row on its own.
        inputs: x, [...].
        baseline: x₀, the same shape.
        steps: Points of the path, at least 1 (2 for the trapezoid rule).
        rule: ``gauss``: Gauss-Legendre, exact where the gradient along the path is a polynomial of degree below
            2 · steps. ``trapezoid``: evenly spaced, both ends with half the weight.

    Raises:
        ValueError: If the shapes differ or there are too few steps.
    """
    if inputs.shape != baseline.shape:
        raise ValueError(f"inputs {list(inputs.shape)} and baseline {list(baseline.shape)} differ in shape")
    nodes, weights = path_points(steps, rule)
    difference = (inputs - baseline).detach()
    total = torch.zeros(inputs.shape, dtype=torch.float64)
    for start in range(0, steps, _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        t = torch.from_numpy(nodes[part]).to(inputs).view(-1, *[1] * inputs.ndim)
        points = (baseline.detach() + t * difference).requires_grad_()
        (gradient,) = torch.autograd.grad(function(points).sum(), points)
        total += torch.tensordot(torch.from_numpy(weights[part]), gradient.double().cpu(), dims=1)
    with torch.no_grad():
        at_baseline, at_input = function(torch.stack((baseline, inputs))).double().tolist()
    return Attribution(total * difference.double().cpu(), at_input, at_baseline, steps)


def path_points(steps: int, rule: Rule) -> tuple[Points, Points]:
    """Return points t in [0, 1] and their weights, which sum to 1; both (steps,).

    Raises:
        ValueError: If there are too few steps.
    """
    fewest = 2 if rule == "trapezoid" else 1
    if steps < fewest:
        raise ValueError(f"the rule {rule!r} needs at least {fewest} steps, got {steps=}")
    if rule == "trapezoid":
        weights = np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
        return np.linspace(0, 1, steps), weights
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return (nodes + 1) / 2, weights / 2
