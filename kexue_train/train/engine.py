"""Who runs backward and step: DeepSpeed, or plain torch with the same numbers. The only door to DeepSpeed."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from kexue_train.errors import ResourceError
from kexue_train.model.hf_folder import untied_weights
from kexue_train.optim import Tiger
from kexue_train.train.checkpoint.format import copy_exactly
from kexue_train.train.config import TrainConfig
from kexue_train.train.objective import LossTerms, PretrainingObjective


class Engine(Protocol):
    """One micro-step of training."""

    def micro_step(self, batch: dict[str, Tensor]) -> LossTerms:
        """Forward, backward and optimizer on one micro-batch; parameters move at the end of a window."""
        ...

    def full_tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All of the weights, and of the optimizer's state, as a checkpoint holds them. A collective call.

        Returns:
            On rank 0 whole tensors, good until the next micro-step: weights by the model's names (tied ones once), and
            for example ``momentum.<name>``. On the other ranks anything.
        """
        ...

    def load_full_tensors(self, weights: Mapping[str, Tensor], optimizer_tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``full_tensors`` gave on rank 0; every rank gets the same. A collective call.

        Raises:
            ArtifactError: If a tensor is missing, unexpected or of another shape, by name.
        """
        ...


def build_engine(
    config: TrainConfig, micro_batch_size: int, objective: PretrainingObjective, optimizer: Tiger, out_dir: Path
) -> Engine:
    """The engine that ``config.engine`` asks for; DeepSpeed's configuration is written to ``out_dir/deepspeed.json``.

    Micro-batches may have another size later: DeepSpeed only reckons its throughput with it.

    Raises:
        ResourceError: If DeepSpeed is asked for and not installed.
    """
    if config.engine == "torch":
        return TorchEngine(objective, optimizer)
    if importlib.util.find_spec("deepspeed") is None:
        raise ResourceError(
            "train.engine=deepspeed, but DeepSpeed is not installed; install it with "
            "pip install 'kexue_train[deepspeed]', or set train.engine=torch, which gives the same numbers"
        )
    return DeepSpeedEngine(objective, optimizer, make_deepspeed_config(config, micro_batch_size), out_dir)


class _WholeOnEveryRank:
    """The tensors of an engine that cuts none of them."""

    def __init__(self, objective: PretrainingObjective, optimizer: Tiger) -> None:
        self._objective, self._optimizer = objective, optimizer

    def full_tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See ``Engine``."""
        groups = self._optimizer.param_groups
        named = [pair for group in groups for pair in zip(group["names"], group["params"], strict=True)]
        momenta = {f"momentum.{name}": self._optimizer.momentum(param) for name, param in named}
        return untied_weights(self._objective.model), momenta

    def load_full_tensors(self, weights: Mapping[str, Tensor], optimizer_tensors: Mapping[str, Tensor]) -> None:
        """See ``Engine``."""
        own_weights, own_optimizer_tensors = self.full_tensors()
        copy_exactly(weights, own_weights, where="the checkpoint's weights")
        copy_exactly(optimizer_tensors, own_optimizer_tensors, where="the checkpoint's optimizer state")


class TorchEngine(_WholeOnEveryRank):
    """Plain torch; Tiger averages its momentum over the ranks, so no wrapper is needed."""

    def micro_step(self, batch: dict[str, Tensor]) -> LossTerms:
        """See ``Engine``."""
        loss, terms = cast(tuple[Tensor, LossTerms], self._objective(batch))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimizer.step()
        return terms


class DeepSpeedEngine(_WholeOnEveryRank):
    """DeepSpeed with its gradient reduction and accumulation off: Tiger does both, in the momentum."""

    def __init__(
        self, objective: PretrainingObjective, optimizer: Tiger, deepspeed_config: dict[str, Any], out_dir: Path
    ) -> None:
        super().__init__(objective, optimizer)
        import deepspeed  # noqa: PLC0415  # a door; importing it takes seconds
        import deepspeed.ops  # noqa: PLC0415

        # Else DeepSpeed compiles an operator that only inference uses, which takes a minute and a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        if torch.distributed.get_rank() == 0:
            (out_dir / "deepspeed.json").write_text(json.dumps(deepspeed_config, indent=2), encoding="utf-8")
        self._engine, *_ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=deepspeed_config, dist_init_required=False
        )
        # Gradients are folded into the momentum and freed during backward, so there is nothing to reduce.
        self._engine.enable_backward_allreduce = False

    def micro_step(self, batch: dict[str, Tensor]) -> LossTerms:
        """See ``Engine``."""
        loss, terms = cast(tuple[Tensor, LossTerms], self._engine(batch))
        self._engine.backward(loss)
        self._engine.step()
        return terms


def make_deepspeed_config(config: TrainConfig, micro_batch_size: int) -> dict[str, Any]:
    """DeepSpeed's JSON. Accumulation 1 and clipping 0: windows live in Tiger, and no gradient is left to clip."""
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
