"""The ``weighting`` section: how much each task of the supervised stage counts."""

from typing import Literal, Self

from pydantic import Field, model_validator

from kexue_train.foundation.config import Config, refuse_without_effect

Scheme = Literal[
    "equal", "initial", "prior", "online", "generalised-mean", "gradient-norm", "min-norm", "main-with-guards"
]
GRADIENT_SCHEMES: tuple[Scheme, ...] = ("gradient-norm", "min-norm", "main-with-guards")
LOSS_SCHEMES: tuple[Scheme, ...] = ("initial", "prior", "online", "generalised-mean")


class WeightingConfig(Config):
    """One number multiplies the loss of each micro-batch; losses count as they are by default."""

    scheme: Scheme = "equal"
    """"equal": losses as they are. A loss divided by its mean in the task's first step ("initial"), by the loss of
    guessing by frequency ("prior"), or by its running mean ("online"). "generalised-mean": the γ-mean of all losses is
    minimised. From gradients: "gradient-norm" makes all equally long, "min-norm" takes the combination that hurts no
    task, "main-with-guards" learns ``main`` and hurts no other."""
    gamma: float = 0.0
    """γ of generalised-mean: 1 is the plain sum, 0 the geometric mean; larger looks more at the largest losses."""
    smoothing: float = Field(default=0.9, ge=0, lt=1)
    """How much of a running mean (of a task's loss or gradient) stays when a new step comes."""
    main: str | None = None
    """The task that main-with-guards learns."""

    @model_validator(mode="after")
    def _options_go_together(self) -> Self:
        if self.scheme != "generalised-mean":
            refuse_without_effect(self, "gamma", because=f"with scheme={self.scheme}")
        if self.scheme in ("equal", "initial", "prior"):
            refuse_without_effect(self, "smoothing", because=f"with scheme={self.scheme}")
        if self.scheme != "main-with-guards":
            refuse_without_effect(self, "main", because=f"with scheme={self.scheme}")
        elif self.main is None:
            raise ValueError("scheme=main-with-guards needs main, the task that is to be learnt")
        return self
