"""The weighting that a configuration asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import assert_never

from torch import Tensor

from kexue_train.foundation.errors import ConfigError
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.build import AccumulatingOptimizer
from kexue_train.train.weighting.config import WeightingConfig
from kexue_train.train.weighting.constant_units import ConstantUnits
from kexue_train.train.weighting.generalised_mean import GeneralisedMean
from kexue_train.train.weighting.gradient_norm import unit_gradient_weights
from kexue_train.train.weighting.gradient_weights import GradientWeights, WeightRule
from kexue_train.train.weighting.main_with_guards import guarded_weights
from kexue_train.train.weighting.min_norm import min_norm_weights
from kexue_train.train.weighting.relative_loss import RelativeLoss
from kexue_train.train.weighting.scheme import TaskWeights
from kexue_train.train.weighting.task_gradients import TaskGradients


def build_weights(
    config: WeightingConfig,
    guessing_losses: Mapping[str, float],
    *,
    micro_batches_per_step: int,
    seed: int,
    optimizer: AccumulatingOptimizer,
    shared: Iterable[Tensor],
) -> TaskWeights:
    """Build the weights of the tasks that train together.

    Args:
        config: The ``weighting`` section.
        guessing_losses: For each task, in the order of the mixture, the loss of guessing by frequency in nats
            (``guessing_loss`` of its labels); only ``prior`` reads the numbers.
        micro_batches_per_step: Over all ranks.
        seed: The run's.
        optimizer: What the gradients are folded into.
        shared: The parameters that all tasks train: the encoder's, in its own order.

    Raises:
        ConfigError: If the weighting could have no effect, or does not go with the tasks or the optimizer.
    """
    tasks, scheme = list(guessing_losses), config.scheme
    if scheme != "equal":
        refuse_lonely_tasks(scheme, num_tasks=len(tasks), micro_batches_per_step=micro_batches_per_step)
    device = next(param.device for group in optimizer.param_groups for param in group["params"])
    match scheme:
        case "equal":
            return ConstantUnits(scheme, dict.fromkeys(tasks, 1.0))
        case "prior":
            return _prior(guessing_losses)
        case "initial":
            return RelativeLoss(scheme, tasks, smoothing=1.0, device=device)
        case "online":
            return RelativeLoss(scheme, tasks, smoothing=config.smoothing, device=device)
        case "generalised-mean":
            return GeneralisedMean(tasks, gamma=config.gamma, smoothing=config.smoothing, device=device)
        case "gradient-norm" | "min-norm" | "main-with-guards":
            rule = _rule(config, tasks)
            gradients = _watch(config, len(tasks), seed=seed, optimizer=optimizer, shared=shared)
            return GradientWeights(scheme, tasks, rule, gradients)
        case _:
            assert_never(scheme)


def refuse_lonely_tasks(scheme: str, *, num_tasks: int, micro_batches_per_step: int) -> None:
    """Refuse a weighting of tasks that never share a step.

    The size of a sign step does not depend on the gradient. So a weight counts only beside the other micro-batches of
    its step, and, through the momentum, beside the steps before.

    Raises:
        ConfigError: If steps have one micro-batch, or there is one task.
    """
    if num_tasks < 2:
        raise ConfigError(f"weighting.scheme={scheme} has no effect on one task; remove it, or add tasks to the mix")
    if micro_batches_per_step < 2:
        raise ConfigError(
            f"weighting.scheme={scheme}: every step has one micro-batch, so one task, and the size of a sign step does "
            "not depend on its loss. Let tasks share steps: a smaller micro_batch_size at the same global_batch_size, "
            "or more workers; or take scheme=equal"
        )


def _prior(guessing_losses: Mapping[str, float]) -> ConstantUnits:
    try:
        return ConstantUnits("prior", guessing_losses)
    except ValueError as error:
        raise ConfigError(f"weighting.scheme=prior: {error}") from None


def _rule(config: WeightingConfig, tasks: list[str]) -> WeightRule:
    if config.scheme == "gradient-norm":
        return unit_gradient_weights
    if config.scheme == "min-norm":
        return min_norm_weights
    if config.main is None or config.main not in tasks:
        raise ConfigError(f"weighting.main={config.main!r} is not in the mix; take one of {', '.join(tasks)}")
    return partial(guarded_weights, main=config.main)


def _watch(
    config: WeightingConfig, num_tasks: int, *, seed: int, optimizer: AccumulatingOptimizer, shared: Iterable[Tensor]
) -> TaskGradients:
    if not isinstance(optimizer, HiddenAccumulation):
        raise ConfigError(
            f"weighting.scheme={config.scheme} watches the gradient of each micro-batch, which a library's optimizer "
            "never has alone; take optimizer.name=tiger, sgdm or adamw, or scheme=online"
        )
    try:
        return TaskGradients(num_tasks, smoothing=config.smoothing, seed=seed, optimizer=optimizer, shared=shared)
    except ValueError as error:
        raise ConfigError(f"weighting.scheme={config.scheme}: {error}") from None
