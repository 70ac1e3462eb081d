"""The tasks that pretraining learns together: one head of the model each, with its names in metrics and texts."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Head:
    """One task. The keys of its metrics follow from ``name``, their labels from ``title``."""

    name: str
    """Prefix of its keys in metrics and results, such as ``mlm``."""
    title: str
    """Its name in texts, such as ``MLM``."""
    counted: str
    """What it predicts, in the plural: the key of their number."""
    subject: str
    """What it predicts, as a chart's title names it."""
    num_classes: int | None = None
    """Number of equally likely answers; None if guessing is not that simple, as over a vocabulary."""
    unit: str = "nat"
    """Unit of its loss."""

    @property
    def loss_key(self) -> str:
        """Key of the mean loss per prediction."""
        return f"{self.name}_loss"

    @property
    def accuracy_key(self) -> str:
        """Key of the share of right predictions."""
        return f"{self.name}_accuracy"

    @property
    def guessing_accuracy(self) -> float | None:
        """The accuracy that guessing reaches, if ``num_classes`` tells."""
        return 1 / self.num_classes if self.num_classes else None

    @property
    def guessing_loss(self) -> float | None:
        """The loss that guessing reaches, if ``num_classes`` tells."""
        return math.log(self.num_classes) if self.num_classes else None


MLM = Head("mlm", "MLM", "predictions", "masked tokens")
NSP = Head("nsp", "NSP", "pairs", "next sentences", num_classes=2)
HEADS = (MLM, NSP)
"""All of them; the first is always trained, the others may be switched off."""
