"""``min-norm``: the step's gradient is the shortest convex combination of the tasks' gradients (MGDA, Pareto).

    u = Σ α_i g_i,  α = argmin ‖u‖ with α ≥ 0, Σ α_i = 1        w_i = α_i/(share of the task's micro-batches)

Then ⟨g_i, u⟩ ≥ ‖u‖² ≥ 0: a small step along -u raises no loss. The shares of the mixture fall away. Adding a constant
to a loss changes nothing. Multiplying the loss of one task does: the longer a gradient, the less it counts.

Source: https://kexue.fm/archives/8896; Sener and Koltun, "Multi-task learning as multi-objective optimization" (2018).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from kexue_train.train.weighting.gram_solvers import min_norm_shares


def min_norm_weights(gram: Tensor, micro_batches: Tensor, tasks: Sequence[str]) -> Tensor:  # noqa: ARG001  # all alike
    """Return α_i over the number of micro-batches of the task; a ``WeightRule``."""
    return min_norm_shares(gram) / micro_batches
