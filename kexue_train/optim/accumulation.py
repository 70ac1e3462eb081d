"""Optimizers that need no gradient buffer: the micro-batches of a step add up in the moving averages themselves.

With micro-batches t = 1, 2, ... in windows of k, and every moving average m of a rule (https://kexue.fm/archives/8634):

    m_t = β' m_(t-1) + (1-β)/k · g_t                  β' = β on the first micro-batch of a window, else 1
    θ  -= step · direction(m_t) + drop · θ            on the last micro-batch of a window only

A gradient is folded in during backward and freed. m is linear in the gradients, so each rank folds its own and the
ranks average *m*, once per window, in buckets that leave while the last backward still runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.optim.clipping import clip_factor, global_norm, square_norms
from kexue_train.optim.gradient_dropout import drop_gradient_
from kexue_train.optim.layout import ScalarLayout
from kexue_train.optim.nonfinite import NonfiniteGuard, NonfiniteReport
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role
from kexue_train.optim.rank_average import RankAverage, ranks
from kexue_train.optim.rules import Rule, TigerRule
from kexue_train.optim.scalars import decide_scalars
from kexue_train.optim.seen_rows import SeenRows
from kexue_train.optim.stochastic_rounding import PARAMETER, Rounding, part_number
from kexue_train.optim.tracked import Tracked, allocate_moments, moment_ends, track
from kexue_train.optim.whole_tensors import fold, move, sum_squares

if TYPE_CHECKING:
    from kexue_train.optim.fused_tiger import FusedTiger

# Of the random bits that round averaged buckets; the parts of tensors have the numbers below.
_BUCKETS = 2**24 - 1


class HiddenAccumulation(torch.optim.Optimizer):
    """Windows, hooks, averages over ranks, bad gradients and states; a rule says what is kept and how it moves.

    Call ``loss.backward(); optimizer.step()`` after every micro-batch.

    Args:
        params: Groups of ``build_param_groups``, or plain parameters (then the role follows from the shape).
        rule: Of every group that brings none as ``rule``.
        defaults: ``lr``, ``beta`` and ``weight_decay`` of groups that do not say.
        accumulation_steps: Micro-batches per window.
        options: See ``Options``.

    Attributes:
        steps: Windows done since the start.
        filled: Micro-batches done of the open window.
        accumulation_steps: May be set anew between windows.
        micro_batch_weight: Weight of the next micro-batch relative to the mean one (for micro-batches that hold
            different numbers of tokens); over a window and all ranks the weights must average 1. ``step`` resets it.

    Raises:
        ValueError: If a parameter cannot be trained so.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: Rule,
        defaults: dict[str, Any],
        *,
        accumulation_steps: int = 1,
        options: Options = Options(),  # noqa: B008  # frozen
    ) -> None:
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, got {accumulation_steps}")
        super().__init__(params, {**defaults, "role": None, "rule": None})
        self.accumulation_steps, self.options = accumulation_steps, options
        self.steps = self.filled = 0
        self.micro_batch_weight = 1.0
        for group in self.param_groups:
            group["rule"] = (group["rule"] or rule).with_settings(group)
        self._tensors = list(track(self.param_groups, bf16=options.bf16_states))
        self._flat = allocate_moments(self._tensors)
        for tensor in self._tensors:
            names = [moment.name for moment in tensor.rule.moments]
            self.state[tensor.param] = dict(zip(names, tensor.moments, strict=True))
        device = self._flat.device
        self._average = RankAverage(self._flat, moment_ends(self._tensors))
        self.layout = ScalarLayout([t.param.shape for t in self._tensors], [t.role for t in self._tensors], device)
        self._guard = NonfiniteGuard([t.name for t in self._tensors], options.on_nonfinite, options.shrink, device)
        self._seen = {}
        if options.lazy_rows and (tables := [t for t in self._tensors if t.role is Role.EMBEDDING]):
            words = max(tables, key=lambda table: table.param.shape[0])
            self._seen[words.index] = SeenRows(words.param.shape[0], device)
        self._fused = self._fuse()
        if options.accumulate == "momentum":
            for tensor in self._tensors:
                hook = partial(self._fold_and_free, tensor)
                tensor.param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @property
    def micro_step(self) -> int:
        """Micro-batches since the start, had every window been as long as now."""
        return self.steps * self.accumulation_steps + self.filled

    @torch.no_grad()
    def step(self, closure: None = None) -> bool:  # type: ignore[override]  # says whether the parameters moved
        """End one micro-batch; on the last of a window average over the ranks and move the parameters.

        Returns:
            Whether the parameters moved.

        Raises:
            TrainingError: If a gradient was not finite and ``on_nonfinite`` is "raise".
        """
        if closure is not None:
            raise ValueError("gradients are folded during backward; a closure that runs backward would count twice")
        self.micro_batch_weight = 1.0
        if self.filled + 1 < self.accumulation_steps:
            self.filled += 1
            return False
        if self.options.accumulate == "gradient":
            self._fold_accumulated()
        for tensor in self._tensors:
            if not tensor.folded:  # no gradient in the whole window is a gradient of zero
                self._fold(tensor, torch.zeros_like(tensor.param), 0.0)
        self._finish_average()
        self._move(*self._scalars())
        self.restart_at(self.steps + 1)
        return True

    def saw_tokens(self, *ids: Tensor) -> None:
        """Under ``lazy_rows``: note the tokens that this micro-batch holds or predicts, any shapes."""
        for seen in self._seen.values():
            seen.mark(*ids)

    def nonfinite_report(self) -> NonfiniteReport:
        """Which tensors had bad gradients since the last report; waits for the device."""
        return self._guard.report()

    def momentum(self, param: Tensor) -> Tensor:
        """The momentum of ``param``, same shape; a view that may be written to."""
        return self.state[param]["momentum"]  # type: ignore[no-any-return]  # torch types states as Any

    def named_moments(self) -> dict[str, Tensor]:
        """All moving averages as ``momentum.<name>`` (``square.<name>``), views that may be written to."""
        return {f"{kind}.{t.name}": value for t in self._tensors for kind, value in self.state[t.param].items()}

    def restart_at(self, steps: int) -> None:
        """Open a new window after ``steps`` of them, forgetting what an open one has noted beside its moments."""
        self.steps, self.filled = steps, 0
        self._guard.flags.zero_()
        for tensor in self._tensors:
            tensor.folded = False
        for seen in self._seen.values():
            seen.reset()

    def state_dict(self) -> dict[str, Any]:
        """Everything that continuing needs, also inside a window (then it is this rank's own).

        At the end of a window it is the same on all ranks, and the next window may have another length.
        """
        own = ("lr", "beta", "weight_decay")
        return {
            "state": {t.index: dict(self.state[t.param]) for t in self._tensors},
            "param_groups": [{key: group[key] for key in own} for group in self.param_groups],
            "steps": self.steps,
            "filled": self.filled,
            "folded": [t.folded for t in self._tensors],
            "nonfinite": self._guard.flags,
            "seen": {index: seen.rows for index, seen in self._seen.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a ``state_dict`` of the same model into this optimizer, in place.

        Raises:
            ValueError: If the number of parameters, a shape, or the place in the window does not fit.
        """
        shapes = [state["momentum"].shape for state in state_dict["state"].values()]
        if shapes != [t.param.shape for t in self._tensors]:
            raise ValueError(f"{len(shapes)} momenta do not match this optimizer's {len(self._tensors)} parameters")
        if state_dict["filled"] >= self.accumulation_steps:
            raise ValueError(
                f"the state is {state_dict['filled']} micro-batches into a window, this optimizer's windows have "
                f"{self.accumulation_steps}; give it the accumulation that the state was saved with"
            )
        self.restart_at(state_dict["steps"])
        self.filled = state_dict["filled"]
        for tensor, state, folded in zip(
            self._tensors, state_dict["state"].values(), state_dict["folded"], strict=True
        ):
            tensor.folded = folded
            for kind, value in state.items():
                self.state[tensor.param][kind].copy_(value)
        for group, settings in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(settings)
            group["rule"] = group["rule"].with_settings(group)
        self._guard.flags.copy_(state_dict["nonfinite"])
        for index, seen in self._seen.items():
            seen.rows.copy_(state_dict["seen"][index])

    @torch.no_grad()
    def _fold_and_free(self, tensor: Tracked, param: Tensor) -> None:
        if param.grad is None:
            raise RuntimeError("another optimizer already takes this parameter's gradients; build one per model")
        grad, param.grad = param.grad, None
        if self.options.clip_norm is not None:
            norm = square_norms([grad]).sqrt()
            grad.mul_(clip_factor(norm, self.options.clip_norm, self.options.clip_form))
        self._fold(tensor, grad, self.micro_batch_weight / self.accumulation_steps)
        if self._averaging and self.filled + 1 == self.accumulation_steps:
            self._average.ready(tensor.place)

    def _fold_accumulated(self) -> None:
        """Average the gradients over micro-batches and ranks, clip them together, fold and free them."""
        tensors = [tensor for tensor in self._tensors if tensor.param.grad is not None]
        grads = [tensor.param.grad for tensor in tensors if tensor.param.grad is not None]
        if not grads:
            return
        share = 1 / self.accumulation_steps
        if self._averaging:  # every rank has gradients of the same tensors
            for work in [dist.all_reduce(grad, async_op=True) for grad in grads]:
                work.wait()
            share /= ranks()
        torch._foreach_mul_(grads, share)
        if self.options.clip_norm is not None:
            factor = clip_factor(global_norm(grads), self.options.clip_norm, self.options.clip_form)
            torch._foreach_mul_(grads, factor)
        for tensor, grad in zip(tensors, grads, strict=True):
            self._fold(tensor, grad, 1.0)
            tensor.param.grad = None

    def _fold(self, tensor: Tracked, grad: Tensor, share: float) -> None:
        options = self.options
        if options.gradient_keep < 1:
            drop_gradient_(grad, keep=options.gradient_keep, seed=options.seed, step=self.steps, tensor=tensor.index)
        first, tensor.folded = not tensor.folded, True
        rounding = self._rounding()
        if self._fused is not None:
            beta = tensor.rule.moments[0].beta
            self._fused.fold(
                tensor.index, grad, decay=beta if first else 1.0, weight=(1 - beta) * share,
                seed=rounding.seed, stream=rounding.stream(part_number(tensor.index, 0)),
            )  # fmt: skip
            return
        bad = fold(tensor.rule, tensor.moments, grad, first=first, share=share, rounding=rounding, number=tensor.index)
        self._guard.mark(tensor.index, bad)

    def _finish_average(self) -> None:
        if self._averaging and self.options.accumulate == "momentum":
            for start, mean in self._average.finish():
                kept = self._flat[start : start + mean.numel()]
                self._rounding().store(kept, mean, number=_BUCKETS, offset=start)

    def _scalars(self) -> tuple[Tensor, Tensor]:
        for seen in self._seen.values():
            seen.reduce_over_ranks()
        return decide_scalars(
            self.param_groups, self._tensors, self.layout, self._sum_squares(),
            bad=self._guard.close_window(), shrink=self._guard.shrink,
            moving={index: seen.rows for index, seen in self._seen.items()}, weissi=self.options.weissi,
        )  # fmt: skip

    def _sum_squares(self) -> Tensor:
        if self._fused is not None:
            return self._fused.sum_squares()
        return sum_squares([tensor.param for tensor in self._tensors], self.layout)

    def _move(self, step: Tensor, drop: Tensor) -> None:
        if self._fused is not None:
            rounding = self._rounding()
            self._fused.move(step, drop, seed=rounding.seed, stream=rounding.stream(0))
            return
        scalars = zip(self.layout.split(step), self.layout.split(drop), strict=True)
        for tensor, (how_far, how_much) in zip(self._tensors, scalars, strict=True):
            move(
                tensor.rule, tensor.param, tensor.moments, how_far, how_much,
                window=self.steps + 1, rounding=self._rounding(), number=tensor.index,
            )  # fmt: skip

    def _fuse(self) -> FusedTiger | None:
        """Kernels over all tensors at once, where there are a GPU, Triton and nothing but Tiger."""
        rules = {tensor.rule for tensor in self._tensors}
        rule = rules.pop()
        usable = self._flat.is_cuda and self._flat.dtype != torch.float64 and find_spec("triton") is not None
        if not usable or rules or not isinstance(rule, TigerRule):
            return None
        from kexue_train.optim.fused_tiger import FusedTiger  # noqa: PLC0415  # Triton is there with CUDA only

        return FusedTiger(
            [tensor.param.detach() for tensor in self._tensors],
            [tensor.moments[0] for tensor in self._tensors],
            self.layout,
            flags=self._guard.flags,
            streams=[part_number(tensor.index, PARAMETER) for tensor in self._tensors],
            dead_zone=rule.dead_zone,
        )

    def _rounding(self) -> Rounding:
        return Rounding(self.options.seed, self.micro_step)

    @property
    def _averaging(self) -> bool:
        return self.options.average_over_ranks and ranks() > 1
