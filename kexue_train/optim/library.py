"""Other people's optimizers, for comparison with Tiger: LAMB and Lion of ``pytorch_optimizer``, AdamW of torch.

All as published, with decoupled or (LAMB) in-update weight decay, none of it for vectors.

* AdamW: Loshchilov and Hutter, https://arxiv.org/abs/1711.05101.
* LAMB: You et al., https://arxiv.org/abs/1904.00962, without bias correction: but for the balance with decay in
  the first steps it changes lengths only, which the trust ratio sets anyway. The norm of a tensor counts as it is; the
  library alone would count it as 10 at most, less than that of most embedding tables.
* Lion: Chen et al., https://arxiv.org/abs/2302.06675; learning rates 3 to 10 times below AdamW's, decay as much above.

LAMB needs whole tensors, as Tiger does; AdamW and Lion work element by element, on slices of tensors too.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from kexue_train.foundation.errors import ResourceError
from kexue_train.optim.gradients import average_gradients_, complete_gradients_
from kexue_train.optim.nonfinite import NonfiniteGuard, NonfiniteReport
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role

LibraryOptimizer = Literal["adamw", "lamb", "lion"]
_BETAS: dict[LibraryOptimizer, tuple[float, float]] = {"adamw": (0.9, 0.999), "lamb": (0.9, 0.999), "lion": (0.9, 0.99)}


def build_library_optimizer(
    name: LibraryOptimizer,
    param_groups: Iterable[Mapping[str, Any]],
    *,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] | None = None,
) -> torch.optim.Optimizer:
    """Build an optimizer of torch or ``pytorch_optimizer``, to be stepped once per step on ``.grad``.

    Args:
        name: "adamw", "lamb" or "lion".
        param_groups: Those of ``build_param_groups``: ``params`` and ``role``; vectors get no decay. Not changed.
        lr: Learning rate; write ``group["lr"]`` to follow a schedule.
        weight_decay: Decay of matrices and embeddings, multiplied by the learning rate.
        betas: Decays of both moments (Lion: in the step, in the momentum); None: those of the publication.

    Raises:
        ResourceError: If ``pytorch_optimizer`` is needed and not installed.
        ValueError: If there is no such name.
    """
    if name not in _BETAS:
        raise ValueError(f"no optimizer {name!r}; there are {', '.join(_BETAS)}")
    groups = [
        {**group, "weight_decay": 0.0 if group["role"] == Role.VECTOR else weight_decay} for group in param_groups
    ]
    settings: dict[str, Any] = {"lr": lr, "betas": betas or _BETAS[name]}
    match name:
        case "adamw":
            return torch.optim.AdamW(groups, **settings, fused=True)
        case "lion":
            return _import_pytorch_optimizer(name).Lion(groups, **settings)  # type: ignore[no-any-return]  # not typed
        case "lamb":
            lamb = _import_pytorch_optimizer(name).Lamb(groups, **settings, weight_decouple=False, adam_debias=True)
            lamb.clamp = math.inf
            return lamb  # type: ignore[no-any-return]  # the library is not typed
        case _:
            assert_never(name)


class GradientAccumulation(torch.optim.Optimizer):
    """Steps any torch optimizer once per step: ``.grad`` adds up, and a step with a bad gradient moves nothing.

    The public methods are those of ``AccumulatingOptimizer``.

    Args:
        inner: An optimizer whose ``state`` has tensors shaped as the parameter, by name.
        accumulation_steps: Micro-batches per step.
        options: Of these clipping, ``on_nonfinite`` ("shrink" is "skip" here) and ``average_over_ranks`` are followed.
    """

    def __init__(self, inner: torch.optim.Optimizer, *, accumulation_steps: int, options: Options) -> None:
        super().__init__(inner.param_groups, {})
        self.param_groups, self.state = inner.param_groups, inner.state
        self.inner, self.accumulation_steps, self.options = inner, accumulation_steps, options
        self.steps = self.micro_steps_done = 0
        self._params = [
            (name, param)
            for group in inner.param_groups
            for name, param in zip(group["names"], group["params"], strict=True)
        ]
        self._guard = NonfiniteGuard(
            [name for name, _ in self._params], "raise" if options.on_nonfinite == "raise" else "skip", 1.0,
            self._params[0][1].device,
        )  # fmt: skip

    @property
    def ends_step(self) -> bool:
        """Whether the open micro-batch is the last of its step."""
        return self.micro_steps_done + 1 == self.accumulation_steps

    @torch.no_grad()
    def step(self, closure: None = None) -> bool:  # type: ignore[override]  # noqa: ARG002  # there is no closure
        """End one micro-batch; returns whether it was the last of its step."""
        if not self.ends_step:
            self.micro_steps_done += 1
            return False
        for index, (_, param) in enumerate(self._params):
            if param.grad is not None:
                self._guard.mark(index, ~torch.isfinite(param.grad.sum()))
        params = [param for _, param in self._params]
        if self.options.average_over_ranks:
            complete_gradients_(params)
        grads = [param.grad for param in params if param.grad is not None]
        if not bool(self._guard.close_step().any()) and grads:
            average_gradients_(
                grads, accumulation_steps=self.accumulation_steps, over_ranks=self.options.average_over_ranks,
                clip_norm=self.options.clip_norm, clip_form=self.options.clip_form,
            )  # fmt: skip
            self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        self.restart_at(self.steps + 1)
        return True

    def observe_tokens(self, *ids: Tensor) -> None:
        """Do nothing: no row is lazy here."""

    def nonfinite_report(self) -> NonfiniteReport:
        """Return bad gradients since the last report."""
        return self._guard.report()

    def named_moments(self) -> dict[str, Tensor]:
        """Return states by ``<kind>.<parameter>``; before the first step one that moves nothing makes them."""
        if not self.inner.state:
            self._make_states()
        return {
            f"{kind}.{name}": value
            for name, param in self._params
            for kind, value in self.inner.state[param].items()
            if isinstance(value, Tensor) and value.shape == param.shape
        }

    @torch.no_grad()
    def restart_at(self, steps: int) -> None:
        """Open a new step after ``steps`` of them."""
        self.steps, self.micro_steps_done = steps, 0
        for state in self.inner.state.values():
            if "step" in state:  # torch counts in a tensor
                state["step"].fill_(steps)
        for group in self.param_groups:
            if "step" in group:  # pytorch_optimizer counts in a number
                group["step"] = steps

    @torch.no_grad()
    def _make_states(self) -> None:
        settings = [(group["lr"], group["weight_decay"]) for group in self.param_groups]
        for group in self.param_groups:
            group.update(lr=0.0, weight_decay=0.0)
        for _, param in self._params:
            param.grad = torch.zeros_like(param)
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        for group, (lr, weight_decay) in zip(self.param_groups, settings, strict=True):
            group.update(lr=lr, weight_decay=weight_decay)
        self.restart_at(self.steps)


def _import_pytorch_optimizer(name: str) -> ModuleType:
    try:
        import pytorch_optimizer  # noqa: PLC0415  # optional, and seconds to import
    except ImportError:
        raise ResourceError(
            f"pytorch_optimizer is not installed, which the optimizer {name} comes from; "
            "install it with pip install 'kexue_train[optimizers]', or use tiger or adamw"
        ) from None
    return pytorch_optimizer  # type: ignore[no-any-return]  # the library is not typed


def __getattr__(name: str) -> Any:
    """Find ``GradientAccumulation`` by the name that it had before."""
    if name != "LibraryWindows":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "LibraryWindows is now GradientAccumulation; the old name goes with the next release", DeprecationWarning, 2
    )
    return GradientAccumulation
