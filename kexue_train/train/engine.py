"""Who runs backward and step: DeepSpeed, or plain torch with the same numbers. The only door to DeepSpeed."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from kexue_train.foundation.artifacts import write_if_possible
from kexue_train.foundation.errors import ResourceError
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.build import AccumulatingOptimizer
from kexue_train.optim.partitioned import FlatSteps
from kexue_train.train.checkpoint import FullTensors
from kexue_train.train.config import TrainConfig
from kexue_train.train.objective import PretrainingObjective
from kexue_train.train.phases import Phase
from kexue_train.train.zero_engine import ZeroEngine
from kexue_train.train.zero_partitions import refuse_unsupported

_BUCKET_SIZE = 50_000_000
"""Elements that DeepSpeed reduces at once, in a buffer of its own; its default would take 2 GB."""


class Engine(Protocol):
    """One micro-step of training."""

    def micro_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Run forward, backward and optimizer on one micro-batch; parameters move after the last of a step.

        Return the ``LabelScores`` of the heads, stacked: [heads, 3].
        """
        ...

    def full_tensors(self) -> FullTensors:
        """Return whole weights and optimizer state on rank 0, valid until the next micro-step. A collective call."""
        ...

    def full_parameter(self, param: Tensor) -> Tensor:
        """Return the whole of a parameter of the model on rank 0. A collective call."""
        ...


def build_engine(
    config: TrainConfig, phase: Phase, objective: PretrainingObjective, optimizer: AccumulatingOptimizer, out_dir: Path
) -> Engine:
    """Build the engine that ``config.compute.engine`` asks for.

    DeepSpeed's configuration is written to ``out_dir/deepspeed.json``. Weights and moments of a checkpoint are loaded
    before, while they are whole. Later phases may have other micro-batches: DeepSpeed only uses their size to compute
    its throughput.

    Raises:
        ResourceError: If DeepSpeed is asked for and not installed.
    """
    if config.compute.engine == "torch":
        return TorchEngine(objective, optimizer)
    if importlib.util.find_spec("deepspeed") is None:
        raise ResourceError(
            "train.compute.engine=deepspeed, but DeepSpeed is not installed; install it with "
            "pip install 'kexue_train[deepspeed]', or set train.compute.engine=torch, which gives the same numbers"
        )
    if isinstance(optimizer, HiddenAccumulation) and optimizer.partitioned:
        flat_steps = FlatSteps(optimizer)
        settings = make_deepspeed_config(config, phase, accumulate=not flat_steps.hidden)
        refuse_unsupported(settings)
        return ZeroEngine(start_deepspeed(objective, flat_steps, settings, out_dir), objective, optimizer, flat_steps)
    return DeepSpeedEngine(objective, optimizer, make_deepspeed_config(config, phase), out_dir)


class _WholeOnEveryRank:
    """Reads the tensors of an engine that keeps all of them whole on every rank."""

    def __init__(self, objective: PretrainingObjective, optimizer: AccumulatingOptimizer) -> None:
        self._objective, self._optimizer = objective, optimizer

    def full_tensors(self) -> FullTensors:
        """Return the weights and the optimizer state without a copy; every rank has them whole."""
        return FullTensors.of(self._objective.model, self._optimizer)

    def full_parameter(self, param: Tensor) -> Tensor:
        """Return the parameter without a copy; every rank has it whole."""
        return param.detach()


class TorchEngine(_WholeOnEveryRank):
    """Plain torch; the optimizer averages over the ranks, so no wrapper is needed."""

    def micro_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Run forward and backward in plain torch, then the optimizer; return the stacked scores of the heads."""
        loss, terms = cast(tuple[Tensor, Tensor], self._objective(batch))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimizer.step()
        return terms


class DeepSpeedEngine(_WholeOnEveryRank):
    """DeepSpeed with its gradient reduction and accumulation off: the optimizer does both."""

    def __init__(
        self,
        objective: PretrainingObjective,
        optimizer: AccumulatingOptimizer,
        deepspeed_config: dict[str, Any],
        out_dir: Path,
    ) -> None:
        super().__init__(objective, optimizer)
        self._engine = start_deepspeed(objective, optimizer, deepspeed_config, out_dir)
        # Gradients are folded into the momentum and freed during backward, so there is nothing to reduce.
        self._engine.enable_backward_allreduce = False

    def micro_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Run forward, backward and, at the end of a step, DeepSpeed's step; return the stacked scores of the heads."""
        loss, terms = cast(tuple[Tensor, Tensor], self._engine(batch))
        self._engine.backward(loss)
        if not self._optimizer.ends_step:
            self._optimizer.step()  # DeepSpeed's step would drop gradients that still add up, and count as a whole one
        else:
            self._engine.step()
        return terms


def start_deepspeed(module: nn.Module, optimizer: Any, deepspeed_config: dict[str, Any], out_dir: Path) -> Any:
    """Start a ``deepspeed.DeepSpeedEngine``; its configuration is written to ``out_dir/deepspeed.json``."""
    with redirect_stdout(sys.stderr):  # where its log belongs: results of commands go to standard output
        import deepspeed  # noqa: PLC0415  # a door; importing it takes seconds
        import deepspeed.ops  # noqa: PLC0415

    # None of its operators is used. Else it asks compilers and devices which it could build, and builds one for CPUs
    # that only inference uses, which takes a minute.
    deepspeed.ops.__compatible_ops__ = {}
    device = next(module.parameters()).device
    if device.type == "cuda":  # it takes the device of this number, where a worker may see its own only
        os.environ["LOCAL_RANK"] = str(device.index)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if torch.distributed.get_rank() == 0:
        write_if_possible(out_dir / "deepspeed.json", json.dumps(deepspeed_config, indent=2))
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=deepspeed_config, dist_init_required=False
    )
    return engine


def make_deepspeed_config(config: TrainConfig, phase: Phase, *, accumulate: bool = False) -> dict[str, Any]:
    """Return DeepSpeed's JSON. Clipping is 0: steps live in the optimizer, and no gradient is left to clip.

    Args:
        config: The ``train`` section.
        phase: The first one.
        accumulate: Whether DeepSpeed adds up the gradients of a step.
    """
    # Without "overlap_comm" below stage 3: it makes the host wait for the device at the end of every backward.
    zero: dict[str, Any] = {"stage": config.compute.zero_stage, "reduce_bucket_size": _BUCKET_SIZE}
    if config.compute.zero_stage in (1, 2):
        zero["compute_grad_norm"] = False  # it would only skip steps with a NaN; at stage 3 it cannot be switched off
    return {
        "train_micro_batch_size_per_gpu": phase.micro_batch_size,
        "gradient_accumulation_steps": phase.accumulation_steps if accumulate else 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the device in every micro-step
    }
