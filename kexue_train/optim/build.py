"""The optimizer that a configuration asks for."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Protocol, assert_never

from torch import Tensor, nn

from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.library import GradientAccumulation, build_library_optimizer
from kexue_train.optim.nonfinite import NonfiniteReport
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role, build_param_groups
from kexue_train.optim.rules import AdamWRule, Rule, SgdmRule
from kexue_train.optim.tiger_update import TigerRule


class AccumulatingOptimizer(Protocol):
    """What training asks of an optimizer, whoever wrote it; ``step`` is called after every micro-batch."""

    param_groups: list[dict[str, Any]]
    accumulation_steps: int
    """Micro-batches per step; may be set between steps."""
    steps: int
    """Steps done."""

    @property
    def ends_step(self) -> bool:
        """Whether the open micro-batch is the last of its step."""
        ...

    def step(self) -> bool:
        """End one micro-batch; returns whether the parameters moved."""
        ...

    def observe_tokens(self, *ids: Tensor) -> None:
        """Note the tokens of the micro-batch, for lazy rows."""
        ...

    def nonfinite_report(self) -> NonfiniteReport:
        """Return bad gradients since the last report."""
        ...

    def named_moments(self) -> dict[str, Tensor]:
        """Return states by ``<kind>.<parameter>``; may be written to."""
        ...

    def restart_at(self, steps: int) -> None:
        """Open a new step after ``steps`` of them."""
        ...


def build_optimizer(
    config: OptimizerConfig,
    model: nn.Module,
    *,
    accumulation_steps: int,
    seed: int,
    partitioned: bool = False,
    lazy_tensors: bool = False,
) -> AccumulatingOptimizer:
    """Build the optimizer of all parameters of ``model`` that require gradients.

    Args:
        config: The ``optimizer`` section.
        model: Its parameters fp32, or bfloat16 under ``states: bf16``.
        accumulation_steps: Micro-batches per step and rank.
        seed: The run's.
        partitioned: Whether an engine cuts parameters and gradients into partitions (ZeRO 1 to 3).
        lazy_tensors: Whether a tensor without a gradient in a step rests.

    Raises:
        ResourceError: If the optimizer's library is not installed.
    """
    groups = build_param_groups(model)
    options = replace(_make_options(config, seed), lazy_tensors=lazy_tensors)
    optimizer: HiddenAccumulation | GradientAccumulation
    if config.name == "lamb" or config.name == "lion":
        inner = build_library_optimizer(config.name, groups, lr=config.lr, weight_decay=config.weight_decay)
        optimizer = GradientAccumulation(inner, accumulation_steps=accumulation_steps, options=options)
    else:
        for group in groups:
            if config.embeddings == "adamw" and group["role"] is Role.EMBEDDING:
                group |= {"rule": AdamWRule(), "lr": config.embedding_lr, "beta": AdamWRule.beta}
        defaults = {"lr": config.lr, "beta": config.momentum_decay, "weight_decay": config.weight_decay}
        optimizer = HiddenAccumulation(
            groups, _make_rule(config), defaults, accumulation_steps=accumulation_steps, options=options,
            partitioned=partitioned,
        )  # fmt: skip
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def set_learning_rate(optimizer: AccumulatingOptimizer, multiplier: float) -> None:
    """Set the learning rate of every group to its own times ``multiplier``."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier


def _make_rule(config: OptimizerConfig) -> Rule:
    match config.name:
        case "tiger":
            return TigerRule(config.momentum_decay, dead_zone=config.dead_zone)
        case "sgdm":
            return SgdmRule(config.momentum_decay)
        case "adamw":
            return AdamWRule(config.momentum_decay)
        case "lamb" | "lion":
            raise ValueError(f"{config.name} is a library's and has no rule here")
        case _:
            assert_never(config.name)


def _make_options(config: OptimizerConfig, seed: int) -> Options:
    options = Options(
        accumulate=config.accumulate,
        on_nonfinite=config.on_nonfinite,
        gradient_keep=config.gradient_keep,
        weissi=config.weissi,
        weissi_sparsity=config.weissi_sparsity,
        lazy_rows=config.embeddings == "lazy",
        bf16_states=config.states == "bf16",
        seed=seed,
    )
    return replace(options, clip_norm=config.clip.norm, clip_form=config.clip.form) if config.clip else options


def __getattr__(name: str) -> Any:
    """Find ``AccumulatingOptimizer`` by the name that it had before."""
    if name != "WindowedOptimizer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        "WindowedOptimizer is now AccumulatingOptimizer; the old name goes with the next release", DeprecationWarning, 2
    )
    return AccumulatingOptimizer
