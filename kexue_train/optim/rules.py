"""What an optimizer keeps of the gradients of a window, and in which direction and how far it moves at its end.

Every rule keeps moving averages of powers of the gradient, m ← β m + (1-β) g^p. Such an average can take in its
gradient in parts, micro-batch by micro-batch and rank by rank, which is all that hiding accumulation in it needs. For
p = 1 the parts add up to exactly the averaged gradient; for p = 2 to the mean of squares, where the whole batch would
have the square of the mean: that AdamW is an approximation, whose steps are up to √k smaller where gradients are noise.

Source: https://kexue.fm/archives/8634, https://kexue.fm/archives/9512.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from kexue_train.optim.tiger_update import RMS_FLOOR


@dataclass(frozen=True)
class Moment:
    """A moving average of a power of the gradient."""

    name: str
    beta: float
    """Decay per window."""
    power: int = 1


class Rule(Protocol):
    """How one optimizer moves; stateless, the same for every tensor of a group."""

    @property
    def moments(self) -> tuple[Moment, ...]:
        """What is kept of each tensor; the first is the momentum."""
        ...

    def with_settings(self, group: dict[str, Any]) -> Rule:
        """The rule with the betas of a parameter group."""
        ...

    def step_size(self, squares: Tensor, elements: Tensor, vector: Tensor) -> Tensor:
        """Length of a step relative to the learning rate, one for each scalar of the layout.

        Args:
            squares: Sums of squares of the parameters.
            elements: How many each is the sum of.
            vector: Which scalars are of vectors, bool.
        """
        ...

    def direction(self, moments: Sequence[Tensor], window: int) -> Tensor:
        """The direction of the step that ends window number ``window`` (from 1), a new tensor shaped as a moment."""
        ...


@dataclass(frozen=True)
class TigerRule:
    """sign(m), scaled by the size of the tensor or row."""

    beta: float = 0.965
    rms_floor: float = RMS_FLOOR
    dead_zone: float = 0.0
    """Momenta below this in size count as zero; ends the slow drift that a forgotten gradient leaves behind."""

    @property
    def moments(self) -> tuple[Moment, ...]:
        """See ``Rule``."""
        return (Moment("momentum", self.beta),)

    def with_settings(self, group: dict[str, Any]) -> TigerRule:
        """See ``Rule``."""
        return replace(self, beta=group["beta"])

    def step_size(self, squares: Tensor, elements: Tensor, vector: Tensor) -> Tensor:
        """See ``Rule``."""
        rms = (squares / elements).sqrt().clamp_min(self.rms_floor)
        return torch.where(vector, 0.5, rms)

    def direction(self, moments: Sequence[Tensor], window: int) -> Tensor:  # noqa: ARG002  # no bias to correct
        """See ``Rule``."""
        sign = moments[0].sign()
        return sign.mul_(moments[0].abs() >= self.dead_zone) if self.dead_zone else sign


@dataclass(frozen=True)
class SgdmRule:
    """m itself: stochastic gradient descent with momentum, as a moving average."""

    beta: float = 0.9

    @property
    def moments(self) -> tuple[Moment, ...]:
        """See ``Rule``."""
        return (Moment("momentum", self.beta),)

    def with_settings(self, group: dict[str, Any]) -> SgdmRule:
        """See ``Rule``."""
        return replace(self, beta=group["beta"])

    def step_size(self, squares: Tensor, elements: Tensor, vector: Tensor) -> Tensor:  # noqa: ARG002  # not scaled
        """See ``Rule``."""
        return torch.ones_like(squares)

    def direction(self, moments: Sequence[Tensor], window: int) -> Tensor:  # noqa: ARG002  # biased on purpose
        """See ``Rule``."""
        return moments[0].clone()


@dataclass(frozen=True)
class AdamWRule:
    """m over the root of v, both corrected for their start at zero."""

    beta: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    @property
    def moments(self) -> tuple[Moment, ...]:
        """See ``Rule``."""
        return Moment("momentum", self.beta), Moment("square", self.beta2, power=2)

    def with_settings(self, group: dict[str, Any]) -> AdamWRule:
        """See ``Rule``."""
        return replace(self, beta=group["beta"])

    def step_size(self, squares: Tensor, elements: Tensor, vector: Tensor) -> Tensor:  # noqa: ARG002  # not scaled
        """See ``Rule``."""
        return torch.ones_like(squares)

    def direction(self, moments: Sequence[Tensor], window: int) -> Tensor:
        """See ``Rule``."""
        momentum, square = moments
        root = (square / (1 - self.beta2**window)).sqrt_().add_(self.eps)
        return momentum.div(1 - self.beta**window).div_(root)
