"""An optimizer of a library, stepped once per window on the averaged gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.optim.clipping import clip_factor, global_norm
from kexue_train.optim.nonfinite import NonfiniteGuard, NonfiniteReport, OnNonfinite
from kexue_train.optim.options import Options
from kexue_train.optim.rank_average import ranks


class LibraryWindows(torch.optim.Optimizer):
    """Explicit accumulation: ``.grad`` adds up over the window; a window with a bad gradient moves nothing.

    Args:
        inner: Whose ``state`` has tensors shaped as the parameter, by name.
        accumulation_steps: Micro-batches per window.
        options: Of these clipping, ``on_nonfinite`` ("shrink" is "skip" here) and ``average_over_ranks`` are followed.
    """

    def __init__(self, inner: torch.optim.Optimizer, *, accumulation_steps: int, options: Options) -> None:
        super().__init__(inner.param_groups, {})
        self.param_groups, self.state = inner.param_groups, inner.state
        self.inner, self.accumulation_steps, self.options = inner, accumulation_steps, options
        self.steps = self.filled = 0
        self._params: list[Tensor] = [param for group in inner.param_groups for param in group["params"]]
        self._names: list[str] = [name for group in inner.param_groups for name in group["names"]]
        policy: OnNonfinite = "raise" if options.on_nonfinite == "raise" else "skip"
        self._guard = NonfiniteGuard(self._names, policy, 1.0, self._params[0].device)

    @torch.no_grad()
    def step(self, closure: None = None) -> bool:  # type: ignore[override]  # noqa: ARG002  # there is no closure
        """See ``WindowedOptimizer``."""
        self.filled += 1
        if self.filled < self.accumulation_steps:
            return False
        for index, param in enumerate(self._params):
            if param.grad is not None:
                self._guard.mark(index, ~torch.isfinite(param.grad.sum()))
        grads = [param.grad for param in self._params if param.grad is not None]
        if not bool(self._guard.close_window().any()) and grads:
            self._average(grads)
            self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        self.restart_at(self.steps + 1)
        return True

    def _average(self, grads: list[Tensor]) -> None:
        share = 1 / self.accumulation_steps
        if self.options.average_over_ranks and ranks() > 1:
            for work in [dist.all_reduce(grad, async_op=True) for grad in grads]:
                work.wait()
            share /= ranks()
        torch._foreach_mul_(grads, share)
        if self.options.clip_norm is not None:
            factor = clip_factor(global_norm(grads), self.options.clip_norm, self.options.clip_form)
            torch._foreach_mul_(grads, factor)

    def saw_tokens(self, *ids: Tensor) -> None:
        """Nothing here is lazy."""

    def nonfinite_report(self) -> NonfiniteReport:
        """See ``WindowedOptimizer``."""
        return self._guard.report()

    def named_moments(self) -> dict[str, Tensor]:
        """See ``WindowedOptimizer``; before the first step made by one that moves nothing."""
        if not self.inner.state:
            self._make_states()
        return {
            f"{kind}.{name}": value
            for name, param in zip(self._names, self._params, strict=True)
            for kind, value in self.inner.state[param].items()
            if isinstance(value, Tensor) and value.shape == param.shape
        }

    @torch.no_grad()
    def restart_at(self, steps: int) -> None:
        """See ``WindowedOptimizer``."""
        self.steps, self.filled = steps, 0
        for state in self.inner.state.values():
            if "step" in state:  # of torch, a tensor
                state["step"].fill_(steps)
        for group in self.param_groups:
            if "step" in group:  # of pytorch_optimizer, a number
                group["step"] = steps

    @torch.no_grad()
    def _make_states(self) -> None:
        settings: list[dict[str, Any]] = [dict(group) for group in self.param_groups]
        for group in self.param_groups:
            group.update(lr=0.0, weight_decay=0.0)
        for param in self._params:
            param.grad = torch.zeros_like(param)
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        for group, before in zip(self.param_groups, settings, strict=True):
            group.update(lr=before["lr"], weight_decay=before["weight_decay"])
        self.restart_at(self.steps)
