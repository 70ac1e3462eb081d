"""Tiger with gradient accumulation hidden in its momentum: no gradient buffer, no gradient left after backward.

With micro-batches t = 1, 2, ... in windows of k (Source: https://kexue.fm/archives/9512):

    m_t = β' m_(t-1) + (1-β)/k · g_t          β' = β on the first micro-batch of a window, else 1
    θ  -= η · (sign(m_t) + λ θ)               on the last micro-batch of a window only

η is the learning rate times RMS(θ) for matrices, times the RMS of each row for embeddings, times ½ for vectors (λ = 0).
This equals Tiger on the averaged gradient. The momentum is linear in the gradient, so each rank folds its own
gradients and the ranks average the *momentum*, once per window.

Deviations from github.com/bojone/tiger, each on purpose: a micro-batch whose gradient is NaN *or Inf* is left out of
the momentum of that tensor, and the shrink by ``shrink`` happens once, at the end of the window, on every rank alike
(the original tests NaN only and shrinks at once, which would let replicas drift apart).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.optim.param_groups import Role


def tiger_fold_(momentum: Tensor, grad: Tensor, *, beta: float, accumulation_steps: int, first: bool) -> Tensor:
    """Fold one micro-batch gradient into ``momentum`` unless it is not finite.

    Args:
        momentum: Any shape; updated in place.
        grad: Same shape, the mean gradient of one micro-batch; overwritten with zeros if not finite.
        beta: Decay per window.
        accumulation_steps: Micro-batches per window.
        first: Whether this is the window's first gradient of the tensor.

    Returns:
        Boolean scalar on the tensor's device: the gradient was finite (no Python bool: that would wait for a GPU).
    """
    finite = torch.isfinite(grad).all()
    grad.masked_fill_(~finite, 0.0)
    if first:
        momentum.mul_(torch.where(finite, momentum.new_full((), beta), 1.0))  # a plain beta would be rounded to fp32
    momentum.add_(grad, alpha=(1 - beta) / accumulation_steps)
    return finite


def tiger_update_(param: Tensor, momentum: Tensor, *, role: Role, lr: float, weight_decay: float) -> None:
    """Move ``param`` in place by one Tiger step along ``-sign(momentum)``.

    Args:
        param: Any shape; for ``Role.EMBEDDING`` rows along all but the last dimension.
        momentum: Same shape.
        role: Which scaling rule applies.
        lr: Learning rate after the schedule.
        weight_decay: λ; ignored for vectors.
    """
    if role is Role.VECTOR:
        param.add_(momentum.sign(), alpha=-0.5 * lr)
        return
    square = param.to(momentum.dtype).square()
    mean = square.mean(-1, keepdim=True) if role is Role.EMBEDDING else square.mean()
    scale = mean.sqrt().mul_(-lr).to(param.dtype)
    param.addcmul_(momentum.sign().add_(param, alpha=weight_decay), scale)


class Tiger(torch.optim.Optimizer):
    """Tiger (https://kexue.fm/archives/9512): one state tensor per parameter, accumulation included.

    Call ``loss.backward(); opt.step()`` after every micro-batch. During backward each gradient is folded into its
    momentum and freed, so at most one layer's gradients are alive. Parameters move when ``step`` ends a window.

    Args:
        params: Groups of ``build_param_groups``, or plain parameters (then the role follows from the shape).
        lr: Learning rate; 1e-3 to 2e-3 is usual.
        beta: Decay of the momentum per window, in [0, 1).
        weight_decay: Decoupled decay of matrices and embeddings.
        accumulation_steps: Micro-batches per window.
        shrink: Factor for a tensor in whose window a gradient was not finite.

    Attributes:
        micro_step: Micro-batches seen since the start.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta: float = 0.965,
        weight_decay: float = 0.01,
        accumulation_steps: int = 1,
        shrink: float = 0.99,
    ) -> None:
        if not lr > 0 or not 0 <= beta < 1 or weight_decay < 0 or accumulation_steps < 1 or not 0 < shrink <= 1:
            raise ValueError(
                "Tiger needs lr > 0, 0 <= beta < 1, weight_decay >= 0, accumulation_steps >= 1 and 0 < shrink <= 1, "
                f"got {lr=}, {beta=}, {weight_decay=}, {accumulation_steps=}, {shrink=}"
            )
        defaults = {"lr": lr, "beta": beta, "weight_decay": weight_decay, "role": None}
        super().__init__(params, defaults)
        self.accumulation_steps = accumulation_steps
        self.shrink = shrink
        self.micro_step = 0
        self._flat, self._bad = self._allocate()
        for group in self.param_groups:
            for param in group["params"]:
                param.register_post_accumulate_grad_hook(partial(self._fold_gradient, group))

    @torch.no_grad()
    def step(self, closure: None = None) -> bool:  # type: ignore[override]  # says whether the parameters moved
        """End one micro-batch; on the last of a window average the momentum over the ranks and move the parameters.

        Returns:
            Whether the parameters moved.
        """
        if closure is not None:
            raise ValueError("Tiger folds gradients during backward; a closure that runs backward would count twice")
        self.micro_step += 1
        if self._inside_window():
            return False
        for group, param in self._parameters():
            if not self.state[param]["folded"]:  # no gradient in the whole window: the momentum still decays
                self.state[param]["momentum"].mul_(group["beta"])
        self._average_over_ranks()
        for (group, param), bad in zip(self._parameters(), self._bad.tolist(), strict=True):
            state = self.state[param]
            if bad:
                param.mul_(self.shrink)
            else:
                role = group["role"] or (Role.MATRIX if param.ndim >= 2 else Role.VECTOR)
                tiger_update_(param, state["momentum"], role=role, lr=group["lr"], weight_decay=group["weight_decay"])
            state["folded"] = False
        self._bad.zero_()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Windows done as ``step``, the momenta in parameter order, and each group's settings.

        A window may have another length after loading (another number of ranks, the same batch).

        Raises:
            RuntimeError: If called inside a window: half a window can not be continued.
        """
        if any(self.state[param]["folded"] for _, param in self._parameters()) or self._inside_window():
            raise RuntimeError(
                f"state_dict() after micro-batch {self.micro_step}, inside a window of {self.accumulation_steps}; "
                "call it when step() has returned True"
            )
        settings = [{k: v for k, v in group.items() if k in self.defaults} for group in self.param_groups]
        return {
            "step": self.micro_step // self.accumulation_steps,
            "momenta": [self.momentum(p) for _, p in self._parameters()],
            "groups": settings,
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a ``state_dict`` of the same model into this optimizer, in place.

        Raises:
            ValueError: If the number of parameters or a shape differs.
        """
        params = [param for _, param in self._parameters()]
        momenta = state_dict["momenta"]
        if [p.shape for p in params] != [m.shape for m in momenta]:
            raise ValueError(f"{len(momenta)} momenta do not match this optimizer's {len(params)} parameters")
        for param, momentum in zip(params, momenta, strict=True):
            self.momentum(param).copy_(momentum)
            self.state[param]["folded"] = False
        self._bad.zero_()
        for group, settings in zip(self.param_groups, state_dict["groups"], strict=True):
            group.update(settings)
        self.micro_step = state_dict["step"] * self.accumulation_steps

    def momentum(self, param: Tensor) -> Tensor:
        """The momentum of ``param``, same shape, at least fp32; a view that may be written to."""
        return self.state[param]["momentum"]  # type: ignore[no-any-return]  # torch types states as Any

    def _allocate(self) -> tuple[Tensor, Tensor]:
        """All momenta as views of one flat tensor; its tail counts non-finite gradients: one all-reduce serves both."""
        params = [param for _, param in self._parameters()]
        sizes = [param.numel() for param in params]
        dtype = torch.promote_types(params[0].dtype, torch.float32)
        flat = torch.zeros(sum(sizes) + len(params), dtype=dtype, device=params[0].device)
        *views, bad = torch.split(flat, [*sizes, len(params)])
        for index, (param, view) in enumerate(zip(params, views, strict=True)):
            self.state[param] = {"momentum": view.view(param.shape), "bad": bad[index], "folded": False}
        return flat, bad

    def _inside_window(self) -> bool:
        return self.micro_step % self.accumulation_steps != 0

    def _parameters(self) -> Iterable[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            for param in group["params"]:
                yield group, param

    @torch.no_grad()
    def _fold_gradient(self, group: dict[str, Any], param: Tensor) -> None:
        state = self.state[param]
        if param.grad is None:
            raise RuntimeError("another Tiger already takes this parameter's gradients; build one optimizer per model")
        finite = tiger_fold_(
            state["momentum"],
            param.grad.to(state["momentum"].dtype),
            beta=group["beta"],
            accumulation_steps=self.accumulation_steps,
            first=not state["folded"],
        )
        state["bad"].add_((~finite).float())
        state["folded"] = True
        param.grad = None

    def _average_over_ranks(self) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(self._flat)
            self._flat[: -len(self._bad)].div_(dist.get_world_size())
