"""Learning-rate schedules: the forms a configuration may take, and their multipliers as pure functions of the step.

Steps are optimizer steps, counted from 1: at step 0 of a warm-up the multiplier is zero and nothing would move.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, RootModel, ValidatorFunctionWrapHandler, WrapValidator, model_validator

from kexue_train.foundation.config import Config


def piecewise_linear(knots: Mapping[int, float], step: int) -> float:
    """Return the multiplier at ``step``: linear between knots, constant after the last, (0, 0) implied.

    Source: https://kexue.fm/archives/8634 and bert4keras ``piecewise_linear``, which count micro-batches.
    """
    points = sorted({0: 0.0, **knots}.items())
    for (left, low), (right, high) in pairwise(points):
        if step < right:
            return low + (high - low) * (step - left) / (right - left)
    return points[-1][1]


def cosine_decay(step: int, num_steps: int, final: float) -> float:
    """Return the multiplier from 1 at step 0 to ``final`` at ``num_steps``, half a period of a cosine, then stay."""
    progress = min(step / num_steps, 1.0)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


class Knots(RootModel[dict[int, float]]):
    """Knots step -> multiplier of ``lr``: linear between knots, constant after the last; (0, 0) is implied."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @property
    def warmup(self) -> int:
        """The step of the first knot, which ends the warm-up."""
        return min(self.root)

    def multiplier(self, step: int) -> float:
        """Return what the learning rate is multiplied by at ``step``, counted from 1."""
        return piecewise_linear(self.root, step)

    @model_validator(mode="after")
    def _knots_are_sound(self) -> Self:
        if not self.root or min(self.root) < 0 or min(self.root.values()) < 0:
            raise ValueError(f"knots {self.root} need at least one knot step: multiplier with both not negative")
        if max(self.root.values()) == 0:
            raise ValueError(f"knots {self.root} are zero everywhere, so nothing would be learnt")
        return self


class WarmupStableDecay(Config):
    """Rise to the full learning rate, hold it, and fall in a straight line; a run may end anywhere before the decay.

    Source: Hu et al., "MiniCPM", https://arxiv.org/abs/2404.06395.
    """

    warmup: int = Field(ge=0)
    """Steps from 0 to the full learning rate."""
    stable: int = Field(ge=0)
    """Steps at the full learning rate."""
    decay: int = Field(gt=0)
    """Steps from there down to ``final``."""
    final: float = Field(default=0.1, ge=0, le=1)
    """Multiplier at the end and from then on."""

    @property
    def knots(self) -> dict[int, float]:
        """The schedule as knots."""
        plateau_end = self.warmup + self.stable
        return {self.warmup: 1.0, plateau_end: 1.0, plateau_end + self.decay: self.final}

    def multiplier(self, step: int) -> float:
        """Return what the learning rate is multiplied by at ``step``, counted from 1."""
        return piecewise_linear(self.knots, step)


class WarmupCosine(Config):
    """Rise to the full learning rate, then fall along half a period of a cosine.

    Source: Loshchilov and Hutter, "SGDR", https://arxiv.org/abs/1608.03983, without restarts.
    """

    warmup: int = Field(ge=0)
    """Steps from 0 to the full learning rate."""
    cosine: int = Field(gt=0)
    """Steps from there down to ``final``."""
    final: float = Field(default=0.1, ge=0, le=1)
    """Multiplier at the end and from then on."""

    def multiplier(self, step: int) -> float:
        """Return what the learning rate is multiplied by at ``step``, counted from 1."""
        if step < self.warmup:
            return piecewise_linear({self.warmup: 1.0}, step)
        return cosine_decay(step - self.warmup, self.cosine, self.final)


_SHAPES = (WarmupStableDecay, WarmupCosine)


def _choose_shape(value: Any, _: ValidatorFunctionWrapHandler) -> Knots | WarmupStableDecay | WarmupCosine:
    """Let the keys decide which schedule is meant, so that an error is about that one and not about all of them."""
    if isinstance(value, Knots | WarmupStableDecay | WarmupCosine):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"not a schedule; {_ALLOWED}")  # noqa: TRY004  # pydantic turns only ValueError into a message
    keys = [str(key) for key in value]
    if all(re.fullmatch(r"-?\d+", key) for key in keys):
        return Knots.model_validate_json(json.dumps(value))
    for shape in _SHAPES:
        if set(keys) <= set(shape.model_fields) and set(keys) & _own_keys(shape):
            return shape.model_validate_json(json.dumps(value))
    raise ValueError(f"no schedule has the keys {', '.join(keys)}; {_ALLOWED}")


def _own_keys(shape: type[Config]) -> set[str]:
    """Return the keys that no other shape has."""
    return set(shape.model_fields) - {key for other in _SHAPES if other is not shape for key in other.model_fields}


_ALLOWED = (
    "give knots step: multiplier, as {1000: 1.0, 100000: 0.1}, or numbers of steps, as "
    "{warmup: 1000, stable: 80000, decay: 20000, final: 0.1} or {warmup: 1000, cosine: 100000, final: 0.1}"
)

Schedule = Annotated[Knots | WarmupStableDecay | WarmupCosine, WrapValidator(_choose_shape)]
"""Type of a configuration's field; each has ``multiplier(step)`` and ``warmup``, the steps of the first rise."""
