"""The optimizer that a configuration asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import nn

from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.library import LibraryOptimizer, build_library_optimizer
from kexue_train.optim.library_windows import LibraryWindows
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role, build_param_groups
from kexue_train.optim.partitioned import PartitionedAccumulation
from kexue_train.optim.rules import AdamWRule, Rule, SgdmRule, TigerRule
from kexue_train.optim.windows import WindowedOptimizer


def build_optimizer(
    config: OptimizerConfig, model: nn.Module, *, accumulation_steps: int, seed: int, partitioned: bool = False
) -> WindowedOptimizer:
    """Optimize all parameters of ``model`` that require gradients.

    Args:
        config: The ``optimizer`` section.
        model: Its parameters fp32, or bfloat16 under ``states: bf16``.
        accumulation_steps: Micro-batches per step and rank.
        seed: The run's.
        partitioned: Whether an engine cuts parameters and gradients into partitions (ZeRO 1 to 3).

    Raises:
        ResourceError: If the optimizer's library is not installed.
    """
    groups = build_param_groups(model)
    options = make_options(config, seed=seed)
    if config.name in ("lamb", "lion"):
        inner = build_library_optimizer(
            cast(LibraryOptimizer, config.name), groups, lr=config.lr, weight_decay=config.weight_decay
        )
        _remember_learning_rates(inner.param_groups)
        return LibraryWindows(inner, accumulation_steps=accumulation_steps, options=options)
    for group in groups:
        if config.embeddings == "adamw" and group["role"] is Role.EMBEDDING:
            group |= {"rule": AdamWRule(), "lr": config.embedding_lr, "beta": AdamWRule.beta}
    rule = make_rule(config)
    defaults = {"lr": config.lr, "beta": config.momentum_decay, "weight_decay": config.weight_decay}
    kind = PartitionedAccumulation if partitioned else HiddenAccumulation
    optimizer = kind(groups, rule, defaults, accumulation_steps=accumulation_steps, options=options)
    _remember_learning_rates(optimizer.param_groups)
    return optimizer


def make_rule(config: OptimizerConfig) -> Rule:
    """Of "tiger", "sgdm" or "adamw"."""
    if config.name == "tiger":
        return TigerRule(config.momentum_decay, dead_zone=config.dead_zone)
    return SgdmRule(config.momentum_decay) if config.name == "sgdm" else AdamWRule(config.momentum_decay)


def make_options(config: OptimizerConfig, *, seed: int) -> Options:
    """The options among the settings."""
    options = Options(
        accumulate=config.accumulate,
        on_nonfinite=config.on_nonfinite,
        gradient_keep=config.gradient_keep,
        weissi=config.weissi,
        lazy_rows=config.embeddings == "lazy",
        bf16_states=config.states == "bf16",
        seed=seed,
    )
    return replace(options, clip_norm=config.clip.norm, clip_form=config.clip.form) if config.clip else options


def set_learning_rate(optimizer: WindowedOptimizer, multiplier: float) -> None:
    """Set the learning rate of every group to its own times ``multiplier``."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier


def _remember_learning_rates(groups: list[dict[str, Any]]) -> None:
    for group in groups:
        group["initial_lr"] = group["lr"]
