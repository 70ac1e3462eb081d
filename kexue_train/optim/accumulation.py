"""Optimizers that need no gradient buffer: the micro-batches of a step add up in the moving averages themselves.

``HiddenAccumulation`` knows when: steps and micro-steps, hooks, averages over ranks, options. A ``Rule`` says what is
kept and in which direction parameters move, a ``TensorStorage`` where tensors lie and does the arithmetic there. Every
moving average is linear in its gradients (https://kexue.fm/archives/8634), so a gradient is folded in during backward
and freed; each rank folds its own, and the ranks average the *moments* once per step, in buckets that leave while the
last backward still runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from itertools import compress
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from kexue_train.optim.callers import refuse_scaler, warn_if_a_caller_clips
from kexue_train.optim.embedding_rows import SeenRows
from kexue_train.optim.gradient_hooks import GradientHooks
from kexue_train.optim.gradients import (
    average_gradients_,
    clip_factor,
    dense_gradient,
    drop_gradient_,
    square_norms,
)
from kexue_train.optim.group_settings import check_accumulation_steps, check_settings, follow_groups
from kexue_train.optim.moment_average import MomentAverage
from kexue_train.optim.nonfinite import NonfiniteGuard, NonfiniteReport
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role, Tracked, check_alike, track
from kexue_train.optim.participation import Participation, agree_on_participation
from kexue_train.optim.random_bits import Rounding
from kexue_train.optim.ranks import ranks
from kexue_train.optim.rules import Rule
from kexue_train.optim.saved_state import as_torch_saves, check_fits, copy_state_, with_own_moments
from kexue_train.optim.step_sizes import ScalarLayout, StepSizes, decide_step_sizes
from kexue_train.optim.storage import TensorStorage, choose_storage
from kexue_train.optim.whole_tensors import WholeTensors, allocate_moments

_Loss = TypeVar("_Loss")
GradientObserver = Callable[[int, Tensor], None]
"""Called as ``observer(index, gradient)``, the index that of the tensor in ``HiddenAccumulation.tensors``."""


class HiddenAccumulation(torch.optim.Optimizer):
    """Optimizes by any ``Rule``; call ``loss.backward(); optimizer.step()`` after every micro-batch.

    Several backwards before a ``step`` are one micro-batch. A parameter that requires no gradients at the end of a step
    neither moves nor decays in it; it may be frozen and unfrozen at any time. One that requires them but got none has a
    gradient of zero (see ``Options.lazy_tensors``). A ``.grad`` set by hand before ``step`` is taken too.

    Args:
        params: Groups of ``build_param_groups``, or plain parameters (then the role follows from the shape). A group
            may set the numbers of ``defaults`` and of its rule; what is set between steps counts from the next one on.
        rule: Rule of every group that brings none as ``rule``.
        defaults: ``lr``, ``beta`` and ``weight_decay`` of groups that do not say.
        accumulation_steps: Micro-batches per step.
        options: See ``Options``.
        partitioned: Whether an engine cuts parameters and gradients into slices (ZeRO 1 to 3). Then ``FlatSteps`` takes
            the gradients and moves the parameters, and ``step`` only counts. Build the optimizer before the engine, so
            that its observer sees gradients before they are cut.

    Attributes:
        micro_steps_done: Micro-batches done of the open step.
        micro_batch_weight: Weight of the next micro-batch relative to the mean one (for micro-batches that hold
            different numbers of tokens); over a step and all ranks the weights must average 1. ``step`` resets it.
        gradient_observer: Sees each gradient of each micro-batch, as backward made it, before it is folded; it must not
            change it. It sees nothing under ``accumulate="gradient"``. A copy has none.

    Raises:
        ValueError: By name, if a parameter cannot be trained, another optimizer has it, or a setting is out of range.
        TypeError: If a setting is no number.
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
        if partitioned and options.bf16_states:
            raise ValueError(
                "bf16_states keeps no fp32 weights, which ZeRO partitions; take ZeRO stage 0, or fp32 states"
            )
        self._accumulation_steps = check_accumulation_steps(accumulation_steps)
        self.options, self.partitioned = options, partitioned
        self.micro_steps_done = 0
        self.micro_batch_weight = 1.0
        self.gradient_observer: GradientObserver | None = None
        self.tensors: list[Tracked] = []
        self._rule, self._rules = rule, list[Rule]()
        self._hooks = GradientHooks(self, HiddenAccumulation._show if partitioned else HiddenAccumulation._take)
        self._asked_callers = self._has_folded = False
        self._settings_of_step = -1
        super().__init__(params, {**defaults, "role": None, "steps": 0})
        check_alike(self.tensors)
        device = self.tensors[0].param.device
        self.guard = NonfiniteGuard([], options.on_nonfinite, options.shrink, device)
        self._claim(self.tensors)  # last, so that one that is refused owns nothing
        self._lay_out()

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per step; may be set between steps."""
        return self._accumulation_steps

    @accumulation_steps.setter
    def accumulation_steps(self, value: int) -> None:
        value = check_accumulation_steps(value)
        if value != self._accumulation_steps and self.micro_steps_done:
            raise ValueError(f"set accumulation_steps between steps, not after {self.micro_steps_done} micro-batches")
        self._accumulation_steps = value

    @property
    def steps(self) -> int:
        """Steps done since the start; every group keeps them, as torch's tools save nothing but groups and states."""
        return self.param_groups[0]["steps"]  # type: ignore[no-any-return]  # groups hold anything

    @steps.setter
    def steps(self, value: int) -> None:
        for group in self.param_groups:
            group["steps"] = value

    @property
    def ends_step(self) -> bool:
        """Whether the open micro-batch is the last of its step."""
        return self.micro_steps_done + 1 == self._accumulation_steps

    @property
    def micro_step(self) -> int:
        """Micro-batches since the start, had every step had as many as now."""
        return self.steps * self._accumulation_steps + self.micro_steps_done

    @property
    def rounding(self) -> Rounding:
        """How bf16 states of the open micro-batch are rounded."""
        return Rounding(self.options.seed, self.micro_step)

    @overload  # type: ignore[override]  # torch's returns nothing
    def step(self, closure: None = None) -> bool: ...

    @overload
    def step(self, closure: Callable[[], _Loss]) -> _Loss: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], _Loss] | None = None) -> bool | _Loss:
        """End one micro-batch; on the last of a step average over the ranks and move the parameters.

        Args:
            closure: Runs forward and backward of the micro-batch; called once.

        Returns:
            Whether the parameters moved; with a closure, what that returned.

        Raises:
            TrainingError: If a gradient was not finite and ``on_nonfinite`` is "raise".
            ValueError: If what was set in a group is out of range, or a parameter is frozen on some ranks only.
            RuntimeError: If a ``GradScaler`` calls it where it cannot undo its scale.
        """
        refuse_scaler(self)
        if self._folds_in_backward and not self._asked_callers:
            self._asked_callers = True
            warn_if_a_caller_clips()
        if closure is None:
            return self._end_micro_batch()
        with torch.enable_grad():
            loss = closure()
        self._end_micro_batch()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Free gradients; those that add up in ``.grad`` stay until their step ends, and folded ones cannot go."""
        if self._folds_in_backward and self._has_folded:
            warnings.warn(
                "zero_grad() between backward() and step() takes nothing back, as gradients are folded into the "
                "momentum during backward; call it after step(), or not at all",
                UserWarning,
                stacklevel=2,
            )
        if self.options.accumulate == "momentum" or not self.micro_steps_done:
            super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimize further parameters, from the next step on and with moments of zero.

        Raises:
            ValueError: By name, as at construction; or if a step is open, or parameters are partitioned.
            TypeError: If a setting is no number.
        """
        is_constructed = bool(self.state)
        if is_constructed and (self.partitioned or self.micro_steps_done or any(t.folded for t in self.tensors)):
            raise ValueError("a parameter group is added between steps, and not while ZeRO partitions the parameters")
        rule = self._rule
        if isinstance(param_group, dict):  # else torch says so
            param_group = {**param_group, "steps": self.steps if is_constructed else 0}
            rule = param_group.pop("rule", None) or rule
        super().add_param_group(param_group)
        try:
            self._track(rule)
        except (ValueError, TypeError):
            self.param_groups.pop()
            raise
        if is_constructed:
            self._lay_out()

    def observe_tokens(self, *ids: Tensor) -> None:
        """Under ``lazy_rows``: note the tokens that this micro-batch holds or predicts, any shapes."""
        for seen in self._seen.values():
            seen.mark(*ids)

    def nonfinite_report(self) -> NonfiniteReport:
        """Return which tensors had bad gradients since the last report; waits for the device."""
        return self.guard.report()

    def momentum(self, param: Tensor) -> Tensor:
        """Return the momentum of ``param``, same shape; a view that may be written to."""
        self.storage.flush()
        return self.state[param]["momentum"]  # type: ignore[no-any-return]  # torch types states as Any

    def named_moments(self) -> dict[str, Tensor]:
        """Return all moving averages as ``momentum.<name>`` (``square.<name>``), views that may be written to."""
        self.storage.flush()
        return {f"{kind}.{t.name}": value for t in self.tensors for kind, value in self.state[t.param].items()}

    def restart_at(self, steps: int) -> None:
        """Open a new step after ``steps`` of them, forgetting what an open one has noted beside its moments."""
        self.storage.flush()
        if self._folds_in_backward:
            self._average.abandon()
        self._open_step(steps)

    def keep_in(self, storage: TensorStorage) -> None:
        """Let ``storage`` keep the moments from now on; it has copied what it needs, and the whole ones are freed."""
        self.storage = storage
        self.state.clear()
        for tensor in self.tensors:
            tensor.moments = ()

    def apply_settings(self) -> None:
        """Let the step that begins follow its groups; once per step, before the first gradient is folded.

        Raises:
            ValueError: If a setting is out of range, or parameters or a role were exchanged.
            TypeError: If a setting is no number.
        """
        if self._settings_of_step == self.steps:
            return
        self._settings_of_step = self.steps
        if follow_groups(self.param_groups, self._rules, self.tensors) and not self.partitioned:
            self.storage = self._choose_storage()

    def _choose_storage(self) -> TensorStorage:
        shifts = self.options.weissi_sparsity > 0
        return choose_storage(self.tensors, self.layout, self.guard.flags, shifts=shifts)

    @torch.no_grad()
    def decide_step_sizes(self) -> StepSizes:
        """At the end of a step: agree over the ranks on how far each tensor and row moves."""
        for number, group in enumerate(self.param_groups):
            check_settings(group, where=f"parameter group {number}")
        for seen in self._seen.values():
            seen.reduce_over_ranks()
        return decide_step_sizes(
            self.param_groups, self.tensors, self.layout, self.storage.sum_squares(),
            bad=self.guard.close_step(), shrink=self.guard.shrink,
            moving={index: seen.rows for index, seen in self._seen.items()}, weissi=self.options.weissi,
            absolutes=self.storage.sum_absolutes() if self.options.weissi_sparsity else None,
            weissi_sparsity=self.options.weissi_sparsity,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return everything that continuing needs, also within a step (then it is this rank's own).

        ``saved_state`` describes its form.

        At the end of a step it is the same on all ranks, and the next step may have another number of micro-batches.

        Raises:
            RuntimeError: If the moments lie in slices on all ranks.
        """
        self._check_whole()
        self.storage.flush()
        return super().state_dict() | {
            "filled": self.micro_steps_done,
            "folded": [t.folded for t in self.tensors],
            "nonfinite": self.guard.flags.clone(),
            "seen": {index: seen.rows.clone() for index, seen in self._seen.items()},
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy a ``state_dict`` of the same model into this optimizer, in place.

        Raises:
            ValueError: If the number of parameters, a shape, or the place within the step does not fit, or if it is the
                state of another optimizer.
        """
        filled = check_fits(state_dict, tensors=len(self.tensors), accumulation_steps=self.accumulation_steps)
        self._check_whole()
        self.storage.flush()
        super().load_state_dict(as_torch_saves(state_dict, [len(group["params"]) for group in self.param_groups]))
        self.micro_steps_done = filled
        if "folded" in state_dict:
            for tensor, folded in zip(self.tensors, state_dict["folded"], strict=True):
                tensor.folded = folded
            self.guard.flags.copy_(state_dict["nonfinite"])
            for index, seen in self._seen.items():
                seen.rows.copy_(state_dict["seen"][index])

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy is built from, and its state; a copy has its own hooks on its own parameters."""
        return {
            "groups": [{**group, "rule": rule} for group, rule in zip(self.param_groups, self._rules, strict=True)],
            "rule": self._rule,
            "defaults": self.defaults,
            "accumulation_steps": self.accumulation_steps,
            "options": self.options,
            "micro_batch_weight": self.micro_batch_weight,
            "saved": with_own_moments(self.state_dict()),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become the copy that ``__getstate__`` describes, or take over what torch's ``load_state_dict`` has read."""
        if "saved" not in state:
            copy_state_(self.tensors, self.param_groups, state["state"], state["param_groups"])
            self.restart_at(self.steps)
            return
        HiddenAccumulation.__init__(
            self, state["groups"], state["rule"], state["defaults"],
            accumulation_steps=state["accumulation_steps"], options=state["options"],
        )  # fmt: skip
        self.micro_batch_weight = state["micro_batch_weight"]
        self.load_state_dict(state["saved"])

    def _track(self, rule: Rule) -> None:
        """Track the parameters of the last group, which torch has accepted."""
        group, number = self.param_groups[-1], len(self.param_groups) - 1
        if group["role"]:
            group["role"] = Role(group["role"]).value  # plain text, which torch.load accepts
        check_settings(group, where=f"parameter group {number}")
        rule = rule.with_settings(group)
        tensors = track(group, rule, number=number, first=len(self.tensors), bf16=self.options.bf16_states)
        check_alike([*self.tensors, *tensors])
        if self.state:
            self._claim(tensors)
        self.tensors += tensors
        self._rules.append(rule)

    def _claim(self, tensors: list[Tracked]) -> None:
        if not self.partitioned:
            self._hooks.claim([tensor.name for tensor in tensors], [tensor.param for tensor in tensors])

    def _lay_out(self) -> None:
        """Build what follows from the tensors; moments that there are already keep their values."""
        old = [tensor.moments for tensor in self.tensors]
        flat, ends = allocate_moments(self.tensors)
        for tensor, moments in zip(self.tensors, old, strict=True):
            for new, value in zip(tensor.moments, moments, strict=False):  # none yet of a new tensor
                new.copy_(value)
            names = [moment.name for moment in tensor.rule.moments]
            self.state[tensor.param] = dict(zip(names, tensor.moments, strict=True))
        self.layout = ScalarLayout([t.param.shape for t in self.tensors], [t.role for t in self.tensors], flat.device)
        self.guard.add([tensor.name for tensor in self.tensors[len(self.guard.names) :]])
        self._seen = {}
        if self.options.lazy_rows and (tables := [t for t in self.tensors if t.role is Role.EMBEDDING]):
            words = max(tables, key=lambda table: table.param.shape[0])
            self._seen[words.index] = SeenRows(words.param.shape[0], flat.device)
        if self.partitioned:  # until an engine takes them; kernels would keep what they were built for
            self.storage = WholeTensors(self.tensors, self.layout)
        else:
            self.storage = self._choose_storage()
        if self._folds_in_backward:
            self._average = MomentAverage(flat, ends)
        if self.options.accumulate == "momentum":
            self._hook_trained()

    @property
    def _folds_in_backward(self) -> bool:
        return self.options.accumulate == "momentum" and not self.partitioned

    @property
    def _averages(self) -> bool:
        return self.options.average_over_ranks and ranks() > 1

    def _hook_trained(self) -> None:
        for tensor in self.tensors:
            if tensor.param.requires_grad:
                self._hooks.hook(tensor.index, tensor.param)

    @torch.no_grad()
    def _show(self, index: int, param: Tensor) -> None:
        """Show the gradient that backward has just made of ``param``; the engine, whose hook comes later, takes it."""
        if self.gradient_observer and param.grad is not None:
            self.gradient_observer(index, param.grad)

    @torch.no_grad()
    def _take(self, index: int, param: Tensor) -> None:
        """Take the gradient that backward has just made of ``param``."""
        grad, param.grad, tensor = param.grad, None, self.tensors[index]
        if grad is None:
            raise RuntimeError(f"something else has taken the gradient of {tensor.name} before its optimizer")
        self._has_folded = True
        if grad.layout is not torch.strided:
            grad = grad.to_dense()
        if self.gradient_observer:
            self.gradient_observer(index, grad)
        if self.options.clip_norm is not None:
            norm = square_norms([grad]).sqrt()
            grad.mul_(clip_factor(norm, self.options.clip_norm, self.options.clip_form))
        share = self.micro_batch_weight / self._accumulation_steps
        averages = self._averages
        if averages and not self._average.takes(tensor):
            self._drop(tensor, grad)
            self.guard.mark(index, self._average.fold_late(tensor, grad, share=share, rounding=self.rounding))
            return
        self._fold(tensor, grad, share)
        if averages and self.ends_step:
            self._average.ready(tensor)
            if self._average.may_leave:
                self.storage.flush()
                self._average.send_complete()

    def _end_micro_batch(self) -> bool:
        if self._folds_in_backward:
            self._take_what_is_left()
            self.storage.flush()
        self.micro_batch_weight, self._has_folded = 1.0, False
        if not self.ends_step:
            self.micro_steps_done += 1
            return False
        self.apply_settings()
        if not self.partitioned:
            if self._folds_in_backward:
                self._complete_moments()
            else:
                self._fold_accumulated()
            self.storage.move(self.decide_step_sizes(), step=self.steps + 1, rounding=self.rounding)
        self._open_step(self.steps + 1)
        return True

    def _open_step(self, steps: int) -> None:
        self.steps, self.micro_steps_done = steps, 0
        self._settings_of_step = -1
        self.guard.flags.zero_()
        for tensor in self.tensors:
            tensor.folded = tensor.rests = False
        for seen in self._seen.values():
            seen.reset()

    def _take_what_is_left(self) -> None:
        """Take gradients that no hook has: set by hand, by DDP, or of parameters that were frozen until now."""
        for tensor in self.tensors:
            param = tensor.param
            if param.grad is not None and self._may_take(tensor):
                self._take(tensor.index, param)
            if param.requires_grad:
                self._hooks.hook(tensor.index, param)

    def _may_take(self, tensor: Tracked) -> bool:
        if not tensor.param.requires_grad:
            tensor.param.grad = None
            warnings.warn(
                f"{tensor.name} has a gradient but is frozen, so that is left out; set requires_grad before step()",
                UserWarning,
                stacklevel=2,
            )
        return tensor.param.requires_grad

    def _complete_moments(self) -> None:
        """Fold zeros for what got no gradient, average over the ranks, and let rest what is not trained."""
        averages, lazy = self._averages, self.options.lazy_tensors
        agreed = self._agree([False] * len(self.tensors)) if lazy else None
        for tensor in self.tensors:
            if not tensor.folded and (agreed.trained[tensor.index] if agreed else tensor.param.requires_grad):
                self._fold(tensor, torch.zeros_like(tensor.param), 0.0)
        self.storage.flush()
        if averages:
            self._average.finish(self.rounding)
        if agreed is None:  # behind all buckets, which leave in one order on all ranks
            late = self._average.late
            agreed = self._agree([tensor.index in late for tensor in self.tensors])
            if averages:
                self._average.finish_late(list(compress(self.tensors, agreed.marked)), self.rounding)
                self._average.close_step(is_irregular=agreed.is_irregular)

    def _fold_accumulated(self) -> None:
        """Average the gradients over micro-batches and ranks, clip them together, fold and free them."""
        options = self.options
        have = [tensor.param.grad is not None and self._may_take(tensor) for tensor in self.tensors]
        agreed = self._agree(have)
        tensors = list(compress(self.tensors, agreed.marked))
        grads = [dense_gradient(tensor.param) for tensor in tensors]
        if grads:
            average_gradients_(
                grads, accumulation_steps=self.accumulation_steps, over_ranks=options.average_over_ranks,
                clip_norm=options.clip_norm, clip_form=options.clip_form,
            )  # fmt: skip
        for tensor, grad in zip(tensors, grads, strict=True):
            self._fold(tensor, grad, 1.0)
            tensor.param.grad = None
        for tensor in self.tensors:
            if agreed.trained[tensor.index] and not tensor.folded:
                self._fold(tensor, torch.zeros_like(tensor.param), 0.0)
        self.storage.flush()

    def _agree(self, marked: list[bool]) -> Participation:
        lazy, hidden = self.options.lazy_tensors, self._folds_in_backward
        trained = [
            tensor.param.requires_grad and (not lazy or tensor.folded or (has_mark and not hidden))
            for tensor, has_mark in zip(self.tensors, marked, strict=True)
        ]
        agreed = agree_on_participation(
            self.tensors, trained=trained, marked=marked, over_ranks=self._averages,
            is_irregular=hidden and self._average.is_irregular,
        )  # fmt: skip
        for tensor in self.tensors:
            tensor.rests = not agreed.trained[tensor.index]
        return agreed

    def _fold(self, tensor: Tracked, grad: Tensor, share: float) -> None:
        self.apply_settings()
        self._drop(tensor, grad)
        is_first, tensor.folded = not tensor.folded, True
        bad = self.storage.fold(tensor.index, grad, is_first=is_first, share=share, rounding=self.rounding)
        self.guard.mark(tensor.index, bad)

    def _drop(self, tensor: Tracked, grad: Tensor) -> None:
        keep, seed = self.options.gradient_keep, self.options.seed
        if keep < 1:
            drop_gradient_(grad, keep=keep, seed=seed, step=self.steps, tensor=tensor.index)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a ``GradScaler`` leaves its scale to ``step``, which refuses; else it divides ``.grad`` by it."""
        return self.options.accumulate == "momentum" or self._accumulation_steps > 1 or self._averages

    def _check_whole(self) -> None:
        if not self.state:
            raise RuntimeError("states lie in slices on all ranks; FlatSteps.whole_moments() puts them together")

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
