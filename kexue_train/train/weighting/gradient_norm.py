"""``gradient-norm``: every micro-batch adds a gradient of the same length.

    w_i ∝ 1/‖g_i‖        g_i the running mean of the task's gradient

The update is the sum of unit gradients, each as often as its task comes. Neither multiplying the loss of a task by a
constant nor adding one changes its direction. With two tasks of as many micro-batches it is the bisector of their
gradients, which hurts neither.

A task whose gradient is 0 keeps the weight of the task with the shortest one.

Source: https://kexue.fm/archives/8870.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def unit_gradient_weights(gram: Tensor, micro_batches: Tensor, tasks: Sequence[str]) -> Tensor:  # noqa: ARG001  # ditto
    """Return 1/‖g‖; a ``WeightRule``."""
    norms = gram.diagonal().clamp_min(0).sqrt()
    if not norms.any():
        return norms + 1
    return 1 / norms.where(norms > 0, norms[norms > 0].min())
