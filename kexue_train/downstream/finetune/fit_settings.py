"""How long, how fast and with which extras a model is fine-tuned."""

from __future__ import annotations

from pydantic import Field

from kexue_train.foundation.config import Config


class FitSettings(Config):
    """Settings of ``loop.fit``; the defaults are those of RoFormerV2 for classification."""

    lr: float = Field(default=5e-4, gt=0)
    """Largest step, as a share of each tensor's root mean square."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; it falls linearly to zero afterwards."""
    epochs: int = Field(default=10, ge=1)
    """Times that every record is seen."""
    batch_size: int = Field(default=32, ge=1)
    """Records per step."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Pieces that a batch is computed in, for less memory."""
    gradient_keep: float = Field(default=1.0, gt=0, le=1)
    """Share of each gradient's elements that count at a step (gradient dropout); 1 keeps all."""
    flood_level: float = Field(default=0.0, ge=0)
    """The loss b below which training climbs instead: |loss - b| + b; 0 switches it off."""
