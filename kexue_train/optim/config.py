"""The ``optimizer`` section: Tiger and its learning-rate schedule."""

from typing import Self

from pydantic import Field, model_validator

from kexue_train.config import Config


class OptimizerConfig(Config):
    """Tiger; a learning rate is relative to the root mean square of each tensor, so it carries over between sizes."""

    lr: float = Field(default=1e-3, gt=0, le=1)
    """Largest learning rate; 1e-3 to 2e-3 is usual, LAMB's learning rates carry over unchanged."""
    beta: float = Field(default=0.965, ge=0, lt=1)
    """Decay of the momentum per step."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled decay of matrices and embeddings, multiplied by the learning rate; vectors have none."""
    schedule: dict[int, float] = Field(default={1000: 1.0, 100_000: 0.1})
    """Knots step -> multiplier of ``lr``: linear between knots, constant after the last; (0, 0) is implied."""

    @model_validator(mode="after")
    def _knots_are_sound(self) -> Self:
        if not self.schedule or min(self.schedule) < 0 or min(self.schedule.values()) < 0:
            raise ValueError(
                f"schedule={self.schedule} needs at least one knot step: multiplier with both not negative"
            )
        if max(self.schedule.values()) <= 0:
            raise ValueError(f"schedule={self.schedule} is zero everywhere, so nothing would be learnt")
        return self
