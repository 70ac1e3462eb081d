"""How large weights, momentum and one step's change are, per role.

Measured inside ``optimizer.step`` of the steps that are asked for. The copy of the weights that the change is taken
from lives only there, after backward, when all activations are freed: so it hardly raises the peak of memory, and other
steps pay nothing. (From the momentum the change could be computed without a copy, but only by repeating the rule of the
optimizer, and then a mistake there would not be seen.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kexue_train.optim.accumulation import HiddenAccumulation


class StepNorms:
    """Norms of single steps of ``optimizer``, of which there is one per model.

    Attributes:
        wanted: Set it before the last micro-step of a step to be measured.
    """

    def __init__(self, optimizer: HiddenAccumulation) -> None:
        self.wanted = False
        self._optimizer = optimizer
        self._before: dict[str, list[Tensor]] = {}
        self._norms: dict[str, Tensor] = {}
        optimizer.register_step_pre_hook(self._keep)
        optimizer.register_step_post_hook(self._measure)

    def take(self) -> dict[str, float]:
        """``parameter_norm_ROLE``, ``momentum_norm_ROLE`` and ``update_norm_ROLE`` of the step measured last.

        Euclidean norms over all tensors of a role: of the weights after the step, of the momentum, and of what the step
        has added to the weights, decay included. Waits for the device. Empty if no step was measured since.
        """
        norms, self._norms = self._norms, {}
        return dict(zip(norms, torch.stack(list(norms.values())).tolist(), strict=True)) if norms else {}

    @torch.no_grad()
    def _keep(self, *_: Any) -> None:
        optimizer = self._optimizer
        if self.wanted and optimizer.ends_step:
            self._before = {role: [param.clone() for param in params] for role, params in _roles(optimizer)}

    @torch.no_grad()
    def _measure(self, *_: Any) -> None:
        if not self._before:
            return
        for role, params in _roles(self._optimizer):
            for before, param in zip(self._before[role], params, strict=True):
                before.sub_(param)
            self._norms[f"parameter_norm_{role}"] = _norm(params)
            self._norms[f"update_norm_{role}"] = _norm(self._before.pop(role))
            self._norms[f"momentum_norm_{role}"] = _norm(self._optimizer.momentum(param) for param in params)
        self.wanted = False


def _roles(optimizer: HiddenAccumulation) -> Iterable[tuple[str, list[Tensor]]]:
    return ((str(group["role"]), group["params"]) for group in optimizer.param_groups)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32) for tensor in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
