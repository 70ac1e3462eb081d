"""Optimizers that need no gradient buffer: the micro-batches of a step add up in the moving averages themselves.

``HiddenAccumulation`` knows when: steps and micro-steps, hooks, averages over ranks, options. A ``Rule`` says what is
kept and in which direction parameters move, a ``TensorStorage`` where tensors lie and does the arithmetic there. Every
moving average is linear in its gradients (https://kexue.fm/archives/8634), so a gradient is folded in during backward
and freed; each rank folds its own, and the ranks average the *moments* once per step, in buckets that leave while the
last backward still runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from kexue_train.optim.embedding_rows import SeenRows
from kexue_train.optim.gradients import average_gradients_, clip_factor, drop_gradient_, square_norms
from kexue_train.optim.nonfinite import NonfiniteGuard, NonfiniteReport
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role, Tracked, track
from kexue_train.optim.random_bits import Rounding
from kexue_train.optim.ranks import RankAverage, ranks
from kexue_train.optim.rules import Rule
from kexue_train.optim.step_sizes import ScalarLayout, StepSizes, decide_step_sizes
from kexue_train.optim.tiger_update import TigerRule
from kexue_train.optim.whole_tensors import WholeTensors, allocate_moments

_BUCKETS = 2**24 - 1
"""Part number of the random bits that round averaged buckets; the parts of tensors have the numbers below."""


class TensorStorage(Protocol):
    """Where parameters and moments lie: whole (``WholeTensors``, ``FusedTensors``) or in slices (``TensorSlices``)."""

    def fold(self, index: int, grad: Tensor, *, is_first: bool, share: float, rounding: Rounding) -> Tensor | bool:
        """Take the gradient of a micro-batch into the moments of the ``index``-th tensor or slice.

        Args:
            index: Which of the tensors or slices.
            grad: As many elements.
            is_first: Whether it is the first of its step, which the moments decay with.
            share: Weight of the micro-batch in the step.
            rounding: For bf16 moments.

        Returns:
            Whether the gradient was not finite, and the moments stay as they were.
        """
        ...

    def sum_squares(self) -> Tensor:
        """Return the sums of squares of the whole parameters, [total] of the layout."""
        ...

    def move(self, sizes: StepSizes, *, step: int, rounding: Rounding) -> None:
        """Move the parameters by step number ``step``, counted from 1."""
        ...


class HiddenAccumulation(torch.optim.Optimizer):
    """Optimizes by any ``Rule``; call ``loss.backward(); optimizer.step()`` after every micro-batch.

    Args:
        params: Groups of ``build_param_groups``, or plain parameters (then the role follows from the shape).
        rule: Rule of every group that brings none as ``rule``.
        defaults: ``lr``, ``beta`` and ``weight_decay`` of groups that do not say.
        accumulation_steps: Micro-batches per step.
        options: See ``Options``.
        partitioned: Whether an engine cuts parameters and gradients into slices (ZeRO 1 to 3). Then ``FlatSteps`` takes
            the gradients and moves the parameters, and ``step`` only counts.

    Attributes:
        steps: Steps done since the start.
        micro_steps_done: Micro-batches done of the open step.
        accumulation_steps: May be set between steps.
        micro_batch_weight: Weight of the next micro-batch relative to the mean one (for micro-batches that hold
            different numbers of tokens); over a step and all ranks the weights must average 1. ``step`` resets it.

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
        partitioned: bool = False,
    ) -> None:
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, got {accumulation_steps}")
        if partitioned and options.bf16_states:
            raise ValueError(
                "bf16_states keeps no fp32 weights, which ZeRO partitions; take ZeRO stage 0 or fp32 states"
            )
        super().__init__(params, {**defaults, "role": None, "rule": None})
        self.accumulation_steps, self.options, self.partitioned = accumulation_steps, options, partitioned
        self.steps = self.micro_steps_done = 0
        self.micro_batch_weight = 1.0
        for group in self.param_groups:
            group["rule"] = (group["rule"] or rule).with_settings(group)
        self.tensors = track(self.param_groups, bf16=options.bf16_states)
        flat, ends = allocate_moments(self.tensors)
        for tensor in self.tensors:
            names = [moment.name for moment in tensor.rule.moments]
            self.state[tensor.param] = dict(zip(names, tensor.moments, strict=True))
        device = flat.device
        self.layout = ScalarLayout([t.param.shape for t in self.tensors], [t.role for t in self.tensors], device)
        self.guard = NonfiniteGuard([t.name for t in self.tensors], options.on_nonfinite, options.shrink, device)
        self._seen = {}
        if options.lazy_rows and (tables := [t for t in self.tensors if t.role is Role.EMBEDDING]):
            words = max(tables, key=lambda table: table.param.shape[0])
            self._seen[words.index] = SeenRows(words.param.shape[0], device)
        self.storage = _choose_storage(self.tensors, self.layout, self.guard.flags)
        if options.accumulate == "momentum" and not partitioned:
            self._flat, self._average = flat, RankAverage(flat, ends)
            for tensor in self.tensors:
                hook = partial(self._fold_and_free, tensor)
                tensor.param.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    @property
    def ends_step(self) -> bool:
        """Whether the open micro-batch is the last of its step."""
        return self.micro_steps_done + 1 == self.accumulation_steps

    @property
    def micro_step(self) -> int:
        """Micro-batches since the start, had every step had as many as now."""
        return self.steps * self.accumulation_steps + self.micro_steps_done

    @property
    def rounding(self) -> Rounding:
        """How bf16 states of the open micro-batch are rounded."""
        return Rounding(self.options.seed, self.micro_step)

    @torch.no_grad()
    def step(self, closure: None = None) -> bool:  # type: ignore[override]  # says whether the parameters moved
        """End one micro-batch; on the last of a step average over the ranks and move the parameters.

        Returns:
            Whether the parameters moved.

        Raises:
            TrainingError: If a gradient was not finite and ``on_nonfinite`` is "raise".
        """
        if closure is not None:
            raise ValueError("gradients are folded during backward; a closure that runs backward would count twice")
        self.micro_batch_weight = 1.0
        if not self.ends_step:
            self.micro_steps_done += 1
            return False
        if not self.partitioned:
            if self.options.accumulate == "gradient":
                self._fold_accumulated()
            for tensor in self.tensors:
                if not tensor.folded:  # no gradient in the whole step is a gradient of zero
                    self._fold(tensor, torch.zeros_like(tensor.param), 0.0)
            self._finish_average()
            self.storage.move(self.decide_step_sizes(), step=self.steps + 1, rounding=self.rounding)
        self.restart_at(self.steps + 1)
        return True

    def observe_tokens(self, *ids: Tensor) -> None:
        """Under ``lazy_rows``: note the tokens that this micro-batch holds or predicts, any shapes."""
        for seen in self._seen.values():
            seen.mark(*ids)

    def nonfinite_report(self) -> NonfiniteReport:
        """Return which tensors had bad gradients since the last report; waits for the device."""
        return self.guard.report()

    def momentum(self, param: Tensor) -> Tensor:
        """Return the momentum of ``param``, same shape; a view that may be written to."""
        return self.state[param]["momentum"]  # type: ignore[no-any-return]  # torch types states as Any

    def named_moments(self) -> dict[str, Tensor]:
        """Return all moving averages as ``momentum.<name>`` (``square.<name>``), views that may be written to."""
        return {f"{kind}.{t.name}": value for t in self.tensors for kind, value in self.state[t.param].items()}

    def restart_at(self, steps: int) -> None:
        """Open a new step after ``steps`` of them, forgetting what an open one has noted beside its moments."""
        self.steps, self.micro_steps_done = steps, 0
        self.guard.flags.zero_()
        for tensor in self.tensors:
            tensor.folded = False
        for seen in self._seen.values():
            seen.reset()

    def keep_in(self, storage: TensorStorage) -> None:
        """Let ``storage`` keep the moments from now on; it has copied what it needs, and the whole ones are freed."""
        self.storage = storage
        self.state.clear()
        for tensor in self.tensors:
            tensor.moments = ()

    @torch.no_grad()
    def decide_step_sizes(self) -> StepSizes:
        """At the end of a step: agree over the ranks on how far each tensor and row moves."""
        for seen in self._seen.values():
            seen.reduce_over_ranks()
        return decide_step_sizes(
            self.param_groups, self.tensors, self.layout, self.storage.sum_squares(),
            bad=self.guard.close_step(), shrink=self.guard.shrink,
            moving={index: seen.rows for index, seen in self._seen.items()}, weissi=self.options.weissi,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return everything that continuing needs, also within a step (then it is this rank's own).

        At the end of a step it is the same on all ranks, and the next step may have another number of micro-batches.

        Raises:
            RuntimeError: If the moments lie in slices on all ranks.
        """
        if not self.state:
            raise RuntimeError("states lie in slices on all ranks; FlatSteps.whole_moments() puts them together")
        own = ("lr", "beta", "weight_decay")
        return {
            "state": {t.index: dict(self.state[t.param]) for t in self.tensors},
            "param_groups": [{key: group[key] for key in own} for group in self.param_groups],
            "steps": self.steps,
            "filled": self.micro_steps_done,
            "folded": [t.folded for t in self.tensors],
            "nonfinite": self.guard.flags,
            "seen": {index: seen.rows for index, seen in self._seen.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a ``state_dict`` of the same model into this optimizer, in place.

        Raises:
            ValueError: If the number of parameters, a shape, or the place within the step does not fit.
        """
        shapes = [state["momentum"].shape for state in state_dict["state"].values()]
        if shapes != [t.param.shape for t in self.tensors]:
            raise ValueError(f"{len(shapes)} momenta do not match this optimizer's {len(self.tensors)} parameters")
        if state_dict["filled"] >= self.accumulation_steps:
            raise ValueError(
                f"the state is {state_dict['filled']} micro-batches into a step, this optimizer's steps have "
                f"{self.accumulation_steps}; give it the accumulation that the state was saved with"
            )
        self.restart_at(state_dict["steps"])
        self.micro_steps_done = state_dict["filled"]
        for group, settings in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(settings)
            group["rule"] = group["rule"].with_settings(group)
        rules = [group["rule"] for group in self.param_groups for _ in group["params"]]
        states = state_dict["state"].values()
        for tensor, rule, state, folded in zip(self.tensors, rules, states, state_dict["folded"], strict=True):
            tensor.rule, tensor.folded = rule, folded
            for kind, value in state.items():
                self.state[tensor.param][kind].copy_(value)
        self.guard.flags.copy_(state_dict["nonfinite"])
        for index, seen in self._seen.items():
            seen.rows.copy_(state_dict["seen"][index])

    @torch.no_grad()
    def _fold_and_free(self, tensor: Tracked, param: Tensor) -> None:
        """Take the gradient that backward has just made of ``param``."""
        if param.grad is None:
            raise RuntimeError("another optimizer already takes this parameter's gradients; build one per model")
        grad, param.grad = param.grad, None
        if self.options.clip_norm is not None:
            norm = square_norms([grad]).sqrt()
            grad.mul_(clip_factor(norm, self.options.clip_norm, self.options.clip_form))
        self._fold(tensor, grad, self.micro_batch_weight / self.accumulation_steps)
        if self._averages_moments and self.ends_step:
            self._average.ready(tensor.place)

    def _fold_accumulated(self) -> None:
        """Average the gradients over micro-batches and ranks, clip them together, fold and free them."""
        options = self.options
        grads = [(tensor, tensor.param.grad) for tensor in self.tensors if tensor.param.grad is not None]
        if not grads:
            return
        average_gradients_(
            [grad for _, grad in grads], accumulation_steps=self.accumulation_steps,
            over_ranks=options.average_over_ranks, clip_norm=options.clip_norm, clip_form=options.clip_form,
        )  # fmt: skip
        for tensor, grad in grads:
            self._fold(tensor, grad, 1.0)
            tensor.param.grad = None

    def _fold(self, tensor: Tracked, grad: Tensor, share: float) -> None:
        options = self.options
        if options.gradient_keep < 1:
            drop_gradient_(grad, keep=options.gradient_keep, seed=options.seed, step=self.steps, tensor=tensor.index)
        is_first, tensor.folded = not tensor.folded, True
        bad = self.storage.fold(tensor.index, grad, is_first=is_first, share=share, rounding=self.rounding)
        self.guard.mark(tensor.index, bad)

    def _finish_average(self) -> None:
        if self._averages_moments:
            for start, mean in self._average.finish():
                kept = self._flat[start : start + mean.numel()]
                self.rounding.store(kept, mean, number=_BUCKETS, offset=start)

    @property
    def _averages_moments(self) -> bool:
        return self.options.accumulate == "momentum" and self.options.average_over_ranks and ranks() > 1

    @property
    def filled(self) -> int:
        """The name of ``micro_steps_done`` until the next release."""
        warnings.warn("filled is now micro_steps_done; the old name goes with the next release", DeprecationWarning, 2)
        return self.micro_steps_done

    def saw_tokens(self, *ids: Tensor) -> None:
        """Observe tokens by the name that ``observe_tokens`` had before."""
        warnings.warn(
            "saw_tokens is now observe_tokens; the old name goes with the next release", DeprecationWarning, 2
        )
        self.observe_tokens(*ids)


def _choose_storage(tensors: list[Tracked], layout: ScalarLayout, flags: Tensor) -> TensorStorage:
    """Take kernels over all tensors at once where there are a GPU, Triton and nothing but one rule of Tiger."""
    moments, rules = tensors[0].moments[0], {tensor.rule for tensor in tensors}
    usable = moments.is_cuda and moments.dtype != torch.float64 and find_spec("triton") is not None
    if not usable or len(rules) > 1 or not isinstance(tensors[0].rule, TigerRule):
        return WholeTensors(tensors, layout)
    from kexue_train.optim.fused_tiger import FusedTensors  # noqa: PLC0415  # Triton is there with CUDA only

    return FusedTensors(tensors, tensors[0].rule, layout, flags)
