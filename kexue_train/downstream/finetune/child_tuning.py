"""Steps that move only a share of a model: random elements of the gradient or of the step, or the most informative.

    gradient    g ← g ⊙ M / p, M drawn anew for every step; the optimizer's averages see that (Child-Tuning F)
    increment   θ ← θ + Δ ⊙ M / p, with the whole gradient behind Δ: the mean step stays, only its noise grows, where an
                optimizer that divides by √v makes steps smaller by √p for the first form
    fisher      g ← g ⊙ M with one M for the whole training: the p largest F = mean (∂ log p / ∂θ)² (Child-Tuning D)

Sources: https://kexue.fm/archives/8764; Xu et al., https://arxiv.org/abs/2109.05687.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from kexue_train.downstream.settings import FitSettings
from kexue_train.foundation.counter_rng import Purpose, generator
from kexue_train.foundation.errors import TrainingError
from kexue_train.optim.gradients import drop_gradient_

MOST_RECORDS = 1024
"""Records that the information is a mean over, at most; each takes a backward pass of its own."""
_STREAM = 2**32 - 1
"""Beside the epochs, whose orders are drawn from the streams below."""

_Loss = Callable[[npt.NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class ChildSteps:
    """Moves ``parameters`` by their gradients, all of them or the share that ``settings`` ask for."""

    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    settings: FitSettings
    seed: int
    masks: Sequence[Tensor] = ()
    """Of ``keep_rule: fisher``: True where an element may move, for each parameter."""

    @torch.no_grad()
    def move(self, step: int) -> None:
        """Move at step number ``step``; gradients may be overwritten."""
        keep = self.settings.gradient_keep
        if keep == 1:
            self.optimizer.step()
            return
        match self.settings.keep_rule:
            case "gradient":
                for number, parameter in enumerate(self.parameters):
                    if parameter.grad is not None:
                        self._drop(parameter.grad, number, step)
                self.optimizer.step()
            case "increment":
                before = [parameter.detach().clone() for parameter in self.parameters]
                self.optimizer.step()
                for number, (parameter, old) in enumerate(zip(self.parameters, before, strict=True)):
                    parameter.copy_(old.add_(self._drop(parameter - old, number, step)))
            case "fisher":
                for parameter, mask in zip(self.parameters, self.masks, strict=True):
                    if parameter.grad is not None:
                        parameter.grad.mul_(mask)
                self.optimizer.step()
            case _:
                assert_never(self.settings.keep_rule)

    def _drop(self, values: Tensor, number: int, step: int) -> Tensor:
        return drop_gradient_(values, keep=self.settings.gradient_keep, seed=self.seed, step=step, tensor=number)


def fisher_masks(
    model: nn.Module, parameters: Sequence[nn.Parameter], num_records: int, loss_of: _Loss, share: float, *, seed: int
) -> list[Tensor]:
    """Return which elements of ``parameters`` have the largest information, a share of all of them together.

    The model is put into evaluation mode, so that no dropout is in it.

    Args:
        model: What ``loss_of`` computes with.
        parameters: Of it; they have no gradients before and none after.
        num_records: How many there are; at most ``MOST_RECORDS`` of them, drawn by the seed, are looked at.
        loss_of: -log p of a record, given its index.
        share: Of the elements, in (0, 1]; at least one is kept.
        seed: ``0 <= seed < 2**32``.

    Raises:
        TrainingError: If no record alone has a gradient, as under losses that rank or contrast records.
    """
    model.eval()
    chosen = generator(seed, Purpose.FINE_TUNING, _STREAM).permutation(num_records)[:MOST_RECORDS]
    information = [torch.zeros_like(parameter) for parameter in parameters]
    for record in chosen:
        loss_of(np.array([record])).backward()  # type: ignore[no-untyped-call]  # torch does not type it
        for parameter, total in zip(parameters, information, strict=True):
            if parameter.grad is not None:
                total.addcmul_(parameter.grad, parameter.grad)
                parameter.grad = None
    flat = torch.cat([total.flatten() for total in information])
    if not bool((flat > 0).any()):
        raise TrainingError(
            "keep_rule=fisher: the loss of one record alone has no gradient, as under losses that compare records; "
            "take keep_rule=gradient or increment"
        )
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[flat.topk(max(1, round(share * flat.numel()))).indices] = True
    parts = torch.split(mask, [parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
