"""Tiger in NumPy float64, twice: the published recursion over micro-batches, and plain Tiger on an averaged gradient.

Source: https://kexue.fm/archives/9512; its per-parameter rules as in tiger.py of github.com/bojone/tiger.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def chi(number: int, period: int) -> int:
    """1 where ``period`` divides ``number``, else 0."""
    return int(number % period == 0)


def step_size(theta: Array, role: str, lr: float) -> Array | float:
    """η of one parameter: relative to its size for matrices, to each row's size for embeddings, fixed for vectors."""
    if role == "vector":
        return 0.5 * lr
    if role == "embedding":
        return lr * np.sqrt((theta**2).mean(-1, keepdims=True))
    return lr * np.sqrt((theta**2).mean())


def tiger_micro_steps(
    theta: Array, gradients: Sequence[Array], role: str, *, lr: float, beta: float, weight_decay: float, k: int
) -> list[Array]:
    """θ after every micro-batch t = 1, 2, ... of ``gradients``, momentum starting at zero.

    A gradient that is not finite leaves the momentum as it is (published). θ then shrinks by 0.99 once, in place of the
    step at the end of the window (this project's rule; published: at once, once per such gradient).
    """
    decay = 0.0 if role == "vector" else weight_decay
    momentum, bad, history = np.zeros_like(theta), False, []
    for t, gradient in enumerate(gradients, start=1):
        if np.isfinite(gradient).all():
            momentum = (1 + (beta - 1) * chi(t - 1, k)) * momentum + (1 - beta) / k * gradient
        else:
            bad = True
        if bad and chi(t, k):
            theta, bad = 0.99 * theta, False
        else:
            theta = theta - chi(t, k) * step_size(theta, role, lr) * (np.sign(momentum) + decay * theta)
        history.append(theta)
    return history


def tiger_windows(
    theta: Array, gradients: Sequence[Array], role: str, *, lr: float, beta: float, weight_decay: float, k: int
) -> Array:
    """θ after plain Tiger steps on the mean gradient of each ``k`` in a row, as with an accumulation buffer."""
    decay = 0.0 if role == "vector" else weight_decay
    momentum = np.zeros_like(theta)
    for start in range(0, len(gradients), k):
        momentum = beta * momentum + (1 - beta) * np.mean(gradients[start : start + k], axis=0)
        theta = theta - step_size(theta, role, lr) * (np.sign(momentum) + decay * theta)
    return theta
