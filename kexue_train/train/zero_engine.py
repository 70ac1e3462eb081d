"""Training steps with parameters, gradients and moments in partitions, ZeRO 1 to 3."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.partitioned import FlatSteps
from kexue_train.train.checkpoint import FullTensors
from kexue_train.train.objective import PretrainingObjective
from kexue_train.train.zero_partitions import ZeroPartitions


class ZeroEngine:
    """DeepSpeed reduces gradients to partitions and publishes weights; what moves them is the optimizer.

    DeepSpeed's step, which gathers all weights, is called once per step: it counts steps, not micro-batches.

    Args:
        engine: A ``DeepSpeedEngine`` of stage 1, 2 or 3 whose optimizer is ``flat_steps``.
        objective: Its module.
        optimizer: Optimizer of the module's parameters.
        flat_steps: Its steps on DeepSpeed's flat tensors.
    """

    def __init__(
        self, engine: Any, objective: PretrainingObjective, optimizer: HiddenAccumulation, flat_steps: FlatSteps
    ) -> None:
        self._engine, self._objective = engine, objective
        self._optimizer, self._flat_steps = optimizer, flat_steps
        params = [param for group in optimizer.param_groups for param in group["params"]]
        self._partitions = ZeroPartitions(engine, params)
        flat_steps.attach(self._partitions.flats, self._partitions.slices)

    def micro_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Run forward, backward and the steps on this rank's partitions; return the stacked scores of the heads."""
        loss, terms = cast(tuple[Tensor, Tensor], self._engine(batch))
        self._engine.backward(loss)
        optimizer, flat_steps = self._optimizer, self._flat_steps
        if optimizer.options.lazy_tensors:
            flat_steps.note_trained(self._objective.trained_by(batch))
        if flat_steps.wants_gradients:
            gradients = self._partitions.gradients()
            flat_steps.fold(gradients)
            # Stage 3 would skip a step with a NaN among them, and use them again for a parameter that gets no new one.
            torch._foreach_zero_(gradients)
        if optimizer.ends_step:
            flat_steps.decide()
        if optimizer.ends_step or not flat_steps.hidden:
            self._engine.step()
        else:
            self._partitions.forget_gradients()
        optimizer.step()
        return terms

    def full_parameter(self, param: Tensor) -> Tensor:
        """Gather a parameter of the model from all ranks. A collective call."""
        return self._partitions.whole(param)

    def full_tensors(self) -> FullTensors:
        """Gather weights and optimizer state from all ranks on rank 0; empty elsewhere. A collective call."""
        keep = dist.get_rank() == 0
        weights = {name: whole.cpu() for name, whole in self._partitions.whole_weights(self._objective.model) if keep}
        moments = {name: whole.cpu() for name, whole in self._flat_steps.whole_moments() if keep}
        return FullTensors(weights, moments)
