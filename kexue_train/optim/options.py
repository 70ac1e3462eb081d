"""What every accumulating optimizer can do beside its rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kexue_train.optim.gradients import ClipForm
from kexue_train.optim.nonfinite import OnNonfinite


@dataclass(frozen=True)
class Options:
    """Options that go together, all off by default but the guard against gradients that are not finite."""

    accumulate: Literal["momentum", "gradient"] = "momentum"
    """"momentum": gradients are folded and freed during backward. "gradient": ``.grad`` adds up over the step."""
    on_nonfinite: OnNonfinite = "shrink"
    """What happens to a tensor in whose step a gradient was NaN or infinite."""
    shrink: float = 0.99
    """What is left of it under "shrink"."""
    clip_norm: float | None = None
    """Largest norm: of the step's whole gradient under "gradient", else of each tensor's micro-batch gradient."""
    clip_form: ClipForm = "hard"
    gradient_keep: float = 1.0
    """Share of gradient elements kept, drawn anew for every step (Child-Tuning F)."""
    weissi: float = 0.0
    """λ₁ of the penalty λ₁ Σ log‖W‖ + λ₂ Σ ‖W‖₁/‖W‖ of matrices."""
    weissi_sparsity: float = 0.0
    """λ₂ of it; the parameters are then moved by plain torch operations on GPUs too."""
    lazy_rows: bool = False
    """Rows of the word table (the longest one) move only if ``observe_tokens`` named them in this step; their momentum
    decays always."""
    lazy_tensors: bool = False
    """A tensor that gets no gradient in a step, on any rank, rests (a head that is not used): it neither moves nor
    decays, and its moments stay. Otherwise its gradient counts as zero. Ranks then average moments after backward.
    Under ``partitioned`` ``FlatSteps.note_trained`` tells which get one."""
    bf16_states: bool = False
    """Weights and momentum are bfloat16, stochastically rounded: 4 bytes per parameter in all."""
    average_over_ranks: bool = True
    """False where somebody else has averaged the gradients already."""
    seed: int = 0
    """Seed of rounding and gradient dropout."""

    def __post_init__(self) -> None:
        if not 0 < self.shrink <= 1 or not 0 < self.gradient_keep <= 1 or min(self.weissi, self.weissi_sparsity) < 0:
            raise ValueError(
                "0 < shrink <= 1, 0 < gradient_keep <= 1, weissi >= 0 and weissi_sparsity >= 0 are needed, got "
                f"shrink={self.shrink}, gradient_keep={self.gradient_keep}, weissi={self.weissi}, "
                f"weissi_sparsity={self.weissi_sparsity}"
            )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be above 0, or None for no clipping; got {self.clip_norm}")
