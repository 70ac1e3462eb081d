"""``main-with-guards``: one task is to be learnt, and no other may be hurt by that.

    u = g_0 + Σ λ_i g_i        λ ≥ 0 as small as keeps ⟨g_i, u⟩ ≥ 0 for all guards i

A guard counts only as far as the main task would hurt it. With one guard, λ = relu(-⟨g_0, g_1⟩)/‖g_1‖². The shares of
the mixture fall away. Neither multiplying the loss of a task by a constant nor adding one changes the direction of u.

In a step without the main task nothing counts: u would be 0.

Source: https://kexue.fm/archives/8907.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kexue_train.train.weighting.gram_solvers import guard_multipliers


def guarded_weights(gram: Tensor, micro_batches: Tensor, tasks: Sequence[str], *, main: str) -> Tensor:
    """Return 1 or λ_i over the number of micro-batches of the task; with ``main`` given, a ``WeightRule``."""
    if main not in tasks:
        return torch.zeros_like(micro_batches)
    first = tasks.index(main)
    order = [first, *(place for place in range(len(tasks)) if place != first)]
    factors = torch.ones_like(micro_batches)
    factors[order[1:]] = guard_multipliers(gram[order][:, order])
    return factors / micro_batches
