"""AdaFactor without factoring: the optimizer of RoFormerV2's fine-tuning.

    v ← β₂ v + (1-β₂) g²        β₂ = 1 - t^-0.8
    u = g / √v, divided by max(1, RMS(u))
    m ← β₁ m + (1-β₁) u
    θ ← θ - lr · max(RMS(θ), 0.001) · m

Steps are relative to the size of each tensor, so one learning rate suits a pretrained body and a new head.

Source: Shazeer and Stern, https://arxiv.org/abs/1804.04235; settings of github.com/ZhuiyiTechnology/roformer-v2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_DECAY = 0.8
_SMALLEST_SQUARE, _SMALLEST_SCALE = 1e-30, 1e-3


class AdaFactor(torch.optim.Optimizer):
    """The optimizer of this module; ``beta`` is β₁. The state is two tensors of the shape of each parameter."""

    def __init__(self, params: Iterable[Tensor], lr: float = 5e-4, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no loss to return
        """Move every parameter that has a gradient.

        Raises:
            ValueError: If a ``closure`` is given; the loss is computed outside.
        """
        if closure is not None:
            raise ValueError("AdaFactor.step takes no closure; call backward() first")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group["lr"], group["beta"])

    def _move(self, parameter: Tensor, grad: Tensor, lr: float, beta: float) -> None:
        state = self.state[parameter]
        if not state:
            state |= {"step": 0, "square": torch.zeros_like(parameter), "update": torch.zeros_like(parameter)}
        state["step"] += 1
        state["square"].lerp_(grad.square().add_(_SMALLEST_SQUARE), state["step"] ** -_DECAY)
        update = grad / state["square"].sqrt()
        update.div_(_rms(update).clamp(min=1.0))
        state["update"].lerp_(update, 1 - beta)
        parameter.sub_(state["update"] * (lr * _rms(parameter).clamp(min=_SMALLEST_SCALE)))


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
