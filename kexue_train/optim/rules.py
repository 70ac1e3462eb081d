"""Rules: what is kept of the gradients of a step, and in which direction and how far parameters move at its end.

Every rule keeps moving averages of powers of the gradient, m ← β m + (1-β) g^p. Such an average can take in its
gradient in parts, micro-batch by micro-batch and rank by rank, which is all that hiding accumulation in it needs. For
p = 1 the parts add up to exactly the averaged gradient; for p = 2 to the mean of squares, where the whole batch would
have the square of the mean: that AdamW is an approximation, whose steps are up to √k smaller where gradients are noise.

Source: https://kexue.fm/archives/8634. Tiger's own rule is in ``tiger_update``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moment:
    """A moving average of a power of the gradient."""

    name: str
    beta: float
    """Decay per step."""
    power: int = 1


class Rule(Protocol):
    """How one optimizer moves; stateless, the same for every tensor of a group."""

    @property
    def moments(self) -> tuple[Moment, ...]:
        """What is kept of each tensor; the first is the momentum."""
        ...

    def with_settings(self, group: dict[str, Any]) -> Rule:
        """Return the rule with those of its numbers that a parameter group sets."""
        ...

    def step_size(self, squares: Tensor, elements: Tensor, vector: Tensor) -> Tensor:
        """Return the length of a step relative to the learning rate, one for each scalar of the layout.

        Args:
            squares: Sums of squares of the parameters.
            elements: How many elements each is the sum of.
            vector: Which scalars are of vectors, bool.
        """
        ...

    def direction(self, moments: Sequence[Tensor], step: int) -> Tensor:
        """Return the direction of step number ``step`` (from 1), a new tensor shaped as a moment."""
        ...


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


_Numbers = TypeVar("_Numbers", bound=_Dataclass)


def with_numbers(rule: _Numbers, group: dict[str, Any]) -> _Numbers:
    """Return ``rule``, a frozen dataclass, with those of its fields that ``group`` has as keys."""
    return replace(rule, **{field.name: group[field.name] for field in fields(rule) if field.name in group})


@dataclass(frozen=True)
class SgdmRule:
    """Stochastic gradient descent with momentum: m itself, as a moving average, biased at the start on purpose."""

    beta: float = 0.9

    @property
    def moments(self) -> tuple[Moment, ...]:
        """The momentum alone."""
        return (Moment("momentum", self.beta),)

    def with_settings(self, group: dict[str, Any]) -> SgdmRule:
        """Return the rule with those of its numbers that a parameter group sets."""
        return with_numbers(self, group)

    def step_size(self, squares: Tensor, elements: Tensor, vector: Tensor) -> Tensor:  # noqa: ARG002  # not scaled
        """Return 1."""
        return torch.ones_like(squares)

    def direction(self, moments: Sequence[Tensor], step: int) -> Tensor:  # noqa: ARG002  # no bias to correct
        """Return a copy of m."""
        return moments[0].clone()


@dataclass(frozen=True)
class AdamWRule:
    """AdamW: m over the root of v, both corrected for their start at zero."""

    beta: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    @property
    def moments(self) -> tuple[Moment, ...]:
        """The momentum m and the average square v."""
        return Moment("momentum", self.beta), Moment("square", self.beta2, power=2)

    def with_settings(self, group: dict[str, Any]) -> AdamWRule:
        """Return the rule with those of its numbers that a parameter group sets; ``beta`` is that of m."""
        return with_numbers(self, group)

    def step_size(self, squares: Tensor, elements: Tensor, vector: Tensor) -> Tensor:  # noqa: ARG002  # not scaled
        """Return 1."""
        return torch.ones_like(squares)

    def direction(self, moments: Sequence[Tensor], step: int) -> Tensor:
        """Return m/(1-β₁ᵗ) over √(v/(1-β₂ᵗ)) + ε."""
        momentum, square = moments
        root = (square / (1 - self.beta2**step)).sqrt_().add_(self.eps)
        return momentum.div(1 - self.beta**step).div_(root)
