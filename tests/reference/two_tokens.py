"""Two tokens, one of which occurs in the first window only: gradients by hand, and optimizers of their table, in NumPy.

A token x is seen as h = E[x] times signs that stand for its context, drawn anew for every example, and predicts itself:
logits are h Wᵀ with W = E (tied), S[h] Eᵀ (half-swapped) or h Wᵀ with a W that stays as it is (untied).
Source of the effect: https://kexue.fm/archives/9736.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tying = Literal["untied", "tied", "half_swapped"]

FREQUENT, RARE = 0, 1
WIDTH, EXAMPLES = 8, 16


@dataclass(frozen=True)
class Window:
    """One step's examples: the token they are all of, and the signs of their contexts [examples, width]."""

    token: int
    signs: Array


def windows(count: int, seed: int, *, contexts_vary: bool = True) -> Iterator[Window]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        signs = rng.choice([-1.0, 1.0], (EXAMPLES, WIDTH)) if contexts_vary else np.ones((EXAMPLES, WIDTH))
        yield Window(RARE if number == 0 else FREQUENT, signs)


def tables(seed: int) -> tuple[Array, Array]:
    """E and the W of an untied head, [2, width], of size 0.02."""
    first, second = np.random.default_rng([seed, 1]).standard_normal((2, 2, WIDTH)) * 0.02
    return first, second


def gradient(table: Array, head: Array, window: Window, tying: Tying) -> Array:
    """Of the mean cross-entropy, by E."""

    def swapped(x: Array) -> Array:
        return np.concatenate((x[:, WIDTH // 2 :], x[:, : WIDTH // 2]), 1) if tying == "half_swapped" else x

    weight = head if tying == "untied" else table
    features = swapped(window.signs * table[window.token])
    logits = features @ weight.T
    odds = np.exp(logits - logits.max(1, keepdims=True))
    errors = odds / odds.sum(1, keepdims=True)
    errors[:, window.token] -= 1
    errors /= EXAMPLES
    by_table = np.zeros_like(table)
    by_table[window.token] = (window.signs * swapped(errors @ weight)).sum(0)
    return by_table if tying == "untied" else by_table + errors.T @ features


class Optimizer(Protocol):
    def step(self, table: Array, gradient: Array, seen: NDArray[np.bool_]) -> Array: ...


@dataclass
class NumpyTiger:
    """Rows of an embedding table under Tiger; ``lazy``: only those ``seen`` [rows] move or decay."""

    lr: float
    beta: float = 0.965
    weight_decay: float = 0.01
    lazy: bool = False
    dead_zone: float = 0.0
    momentum: Array | float = 0.0

    def step(self, table: Array, gradient: Array, seen: NDArray[np.bool_]) -> Array:
        self.momentum = self.beta * self.momentum + (1 - self.beta) * gradient
        direction = np.where(np.abs(self.momentum) >= self.dead_zone, np.sign(self.momentum), 0.0)
        size = np.sqrt((table**2).mean(1, keepdims=True))
        moved = table - self.lr * size * (direction + self.weight_decay * table)
        return np.where(seen[:, None], moved, table) if self.lazy else moved


@dataclass
class NumpyAdamW:
    """AdamW as published: decoupled decay, both averages corrected for their start."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    averages: list[Array | float] = field(default_factory=lambda: [0.0, 0.0])
    steps: int = 0

    def step(self, table: Array, gradient: Array, seen: NDArray[np.bool_]) -> Array:  # noqa: ARG002  # dense
        self.steps += 1
        powers = gradient, gradient**2
        self.averages = [b * m + (1 - b) * g for b, m, g in zip(self.betas, self.averages, powers, strict=True)]
        mean, square = (m / (1 - b**self.steps) for b, m in zip(self.betas, self.averages, strict=True))
        return table - self.lr * (mean / (np.sqrt(square) + 1e-8) + self.weight_decay * table)


def train(optimizer: Optimizer, *, seed: int, steps: int, tying: Tying = "untied", contexts_vary: bool = True) -> Array:
    """E at the start and after every step, [steps + 1, 2, width]."""
    table, head = tables(seed)
    history = [table]
    for window in windows(steps, seed, contexts_vary=contexts_vary):
        seen = np.arange(2) == window.token
        history.append(optimizer.step(history[-1], gradient(history[-1], head, window, tying), seen))
    return np.stack(history)
