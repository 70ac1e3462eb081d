"""The two small problems behind the weights, on the Gram matrix G of the tasks' gradients, G_ij = ⟨g_i, g_j⟩.

* ``min_norm_shares``: the shortest u = Σ α_i g_i with α ≥ 0, Σ α_i = 1. Then ⟨g_i, u⟩ ≥ ‖u‖² for all tasks, with
  equality where α_i > 0, so a small step against u hurts none (https://kexue.fm/archives/8896).
* ``guard_multipliers``: u = g_0 + Σ λ_i g_i with λ ≥ 0, the vector nearest to g_0 with ⟨g_i, u⟩ ≥ 0 for all guards
  (https://kexue.fm/archives/8907).

Both are solved on the host in fp64: matrices are as large as the number of tasks in a step. Neither needs a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TOLERANCE = 1e-10
"""Relative to the longest gradient's squared norm: far below what a sketch can tell."""
_MOST_ITERATIONS = 2000


def min_norm_shares(gram: Tensor) -> Tensor:
    """Return α of the shortest vector in the convex hull of the gradients.

    Frank–Wolfe with pairwise steps: share moves from the task of the support that u serves most to the one that it
    serves least, as much as shortens u most. Unlike plain Frank–Wolfe it converges linearly, and for two tasks the
    first step is exact.

    Args:
        gram: [tasks, tasks], fp64, symmetric, positive semidefinite; on the CPU.

    Returns:
        [tasks], at least 0, with sum 1.
    """
    tasks = gram.shape[0]
    shares = torch.full((tasks,), 1 / tasks, dtype=gram.dtype)
    limit = _TOLERANCE * float(gram.diagonal().max())
    for _ in range(_MOST_ITERATIONS):
        served = gram @ shares  # ⟨g_i, u⟩
        least = int(served.argmin())
        most = int(served.where(shares > 0, -torch.inf).argmax())
        gap = float(served[most] - served[least])
        if gap <= limit:
            break
        curvature = float(gram[most, most] + gram[least, least] - 2 * gram[most, least])  # ‖g_most - g_least‖²
        share = float(shares[most])
        moved = share if gap >= share * curvature else gap / curvature
        shares[most] = share - moved
        shares[least] += moved
    return shares / shares.sum()


def guard_multipliers(gram: Tensor) -> Tensor:
    """Return λ of the vector nearest to the first gradient that hurts no other.

    One guard after the other gets the λ that is best beside the others', relu(-⟨g_0 + Σ_{j≠i} λ_j g_j, g_i⟩)/‖g_i‖²,
    until none changes. One guard needs one round.

    Args:
        gram: [1 + guards, 1 + guards], fp64, the main task first; on the CPU.

    Returns:
        [guards], at least 0.
    """
    guards = gram.shape[0] - 1
    factors = torch.zeros(guards + 1, dtype=gram.dtype)
    factors[0] = 1.0
    squares = gram.diagonal()
    limit = _TOLERANCE * float(squares.max())
    for _ in range(_MOST_ITERATIONS):
        change = 0.0
        for guard in range(1, guards + 1):
            square = float(squares[guard])
            if square > 0:
                old = float(factors[guard])
                factors[guard] = max(0.0, old - float(gram[guard] @ factors) / square)
                change = max(change, abs(float(factors[guard]) - old) * square)
        if change <= limit:
            break
    return factors[1:]
