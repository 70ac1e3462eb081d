"""Who runs backward and step: DeepSpeed, or plain torch with the same numbers. The only door to DeepSpeed."""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from kexue_train.errors import ResourceError
from kexue_train.optim import Tiger
from kexue_train.train.config import TrainConfig
from kexue_train.train.objective import LossTerms, PretrainingObjective


class Engine(Protocol):
    """One micro-step of training."""

    def micro_step(self, batch: dict[str, Tensor]) -> LossTerms:
        """Forward, backward and optimizer on one micro-batch; parameters move at the end of a window."""
        ...


def build_engine(config: TrainConfig, objective: PretrainingObjective, optimizer: Tiger, out_dir: Path) -> Engine:
    """The engine that ``config.engine`` asks for; DeepSpeed's configuration is written to ``out_dir/deepspeed.json``.

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
    return DeepSpeedEngine(objective, optimizer, make_deepspeed_config(config), out_dir)


class TorchEngine:
    """Plain torch; Tiger averages its momentum over the ranks, so no wrapper is needed."""

    def __init__(self, objective: PretrainingObjective, optimizer: Tiger) -> None:
        self._objective, self._optimizer = objective, optimizer

    def micro_step(self, batch: dict[str, Tensor]) -> LossTerms:
        """See ``Engine``."""
        loss, terms = cast(tuple[Tensor, LossTerms], self._objective(batch))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._optimizer.step()
        return terms


class DeepSpeedEngine:
    """DeepSpeed with its gradient reduction and accumulation off: Tiger does both, in the momentum."""

    def __init__(
        self, objective: PretrainingObjective, optimizer: Tiger, deepspeed_config: dict[str, Any], out_dir: Path
    ) -> None:
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


def make_deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's JSON. Accumulation 1 and clipping 0: windows live in Tiger, and no gradient is left to clip."""
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
