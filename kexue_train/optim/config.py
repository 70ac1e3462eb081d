"""The ``optimizer`` section: which optimizer, how it accumulates, and its learning-rate schedule."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kexue_train.foundation.config import Config
from kexue_train.optim.schedule import Knots, Schedule


class ClipConfig(Config):
    """Gradient clipping (https://kexue.fm/archives/7469)."""

    norm: float = Field(gt=0)
    """Largest norm: of the step's gradient if that is accumulated, else of each tensor's micro-batch gradient."""
    form: Literal["hard", "soft"] = "hard"
    """"hard": g · min(1, norm/‖g‖); "soft": g · norm/(‖g‖ + norm)."""


class OptimizerConfig(Config):
    """Tiger by default; its learning rate is relative to the size of each tensor, so it carries over between sizes."""

    name: Literal["tiger", "sgdm", "adamw", "lamb", "lion"] = "tiger"
    """"tiger", "sgdm" and "adamw" can accumulate in their momentum (adamw only approximately); "lamb" and "lion" are a
    library's, for comparison."""
    lr: float = Field(default=1e-3, gt=0, le=1)
    """Largest learning rate; for tiger 1e-3 to 2e-3 is usual, and LAMB's learning rates carry over unchanged."""
    beta: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the momentum per step; by default 0.965 for tiger, 0.9 for the others."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    """Decoupled decay of matrices and embeddings, multiplied by the learning rate; vectors have none."""
    schedule: Schedule = Knots({1000: 1.0, 100_000: 0.1})
    """Multiplier of ``lr`` over the optimizer steps: knots {step: multiplier}, linear between them and constant after
    the last; or {warmup, stable, decay, final}; or {warmup, cosine, final}."""
    accumulate: Literal["momentum", "gradient"] = "momentum"
    """"momentum": each gradient is folded into the momentum during backward and freed, so there is no gradient buffer;
    "gradient": gradients add up over the micro-batches of a step. Both give the same steps (adamw: nearly)."""
    states: Literal["fp32", "bf16"] = "fp32"
    """"bf16" keeps weights and momentum in bfloat16, stochastically rounded: 4 bytes per parameter in all instead of 8;
    needs tiger, train.precision=bf16 and accumulation in the momentum."""
    on_nonfinite: Literal["shrink", "skip", "raise"] = "shrink"
    """What happens to a tensor in whose step a gradient was NaN or infinite: it is multiplied by 0.99 in place of its
    step, stays as it is, or training ends."""
    max_nonfinite_steps: int = Field(default=100, gt=0)
    """Training ends after so many steps in a row with such a gradient."""
    embeddings: Literal["same", "lazy", "adamw"] = "same"
    """Embeddings of rare tokens drift under sign steps: "lazy" moves a row only in steps in which its token occurs;
    "adamw" gives the embeddings to AdamW with ``embedding_lr``."""
    embedding_lr: float = Field(default=1e-4, gt=0, le=1)
    """Learning rate of the embeddings under embeddings=adamw."""
    dead_zone: float = Field(default=0.0, ge=0)
    """Tiger: momenta below this in size move nothing; 1e-30 ends the endless last part of the drift that a forgotten
    gradient leaves behind, 1e-8 nearly all of it."""
    clip: ClipConfig | None = None
    """Gradient clipping."""
    gradient_keep: float = Field(default=1.0, gt=0, le=1)
    """Share of gradient elements kept, drawn anew for every step (Child-Tuning); 1 keeps all."""
    weissi: float = Field(default=0.0, ge=0)
    """λ₁ of the penalty λ₁ Σ log‖W‖ + λ₂ Σ ‖W‖₁/‖W‖ of matrices, which does not see how layers share out their
    scale."""
    weissi_sparsity: float = Field(default=0.0, ge=0)
    """λ₂ of it: small elements go to zero, the norm stays. Costs GPUs the fused step of tiger."""

    @property
    def momentum_decay(self) -> float:
        """``beta``, or its default."""
        return self.beta if self.beta is not None else 0.965 if self.name == "tiger" else 0.9

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if self.name in ("lamb", "lion"):
            own = {"states": "fp32", "embeddings": "same", "gradient_keep": 1.0, "weissi": 0.0, "weissi_sparsity": 0.0}
            wrong = [name for name, off in own.items() if getattr(self, name) != off]
            if self.accumulate != "gradient" or wrong:
                raise ValueError(
                    f"name={self.name} accumulates in the gradient: set accumulate=gradient, and leave out "
                    f"{', '.join(wrong) or 'accumulate=momentum'}"
                )
        if self.states == "bf16" and (self.name != "tiger" or self.accumulate != "momentum"):
            raise ValueError("states=bf16 needs name=tiger and accumulate=momentum; take states=fp32")
        if self.dead_zone and self.name != "tiger":
            raise ValueError(f"dead_zone is of tiger; leave it out for name={self.name}")
        return self
