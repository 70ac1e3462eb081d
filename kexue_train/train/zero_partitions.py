"""Where DeepSpeed's ZeRO keeps which slice of which parameter and gradient. Reads its engine, imports nothing of it.

Stages 1 and 2 flatten each group of parameters and cut the whole into one partition per rank; stage 3 cuts each
parameter into one slice per rank and flattens those. Both pad. Checked with DeepSpeed 0.19.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from kexue_train.foundation.errors import ConfigError
from kexue_train.optim.partitioned import TensorSlice

_REASONS = {
    "zero_optimization.offload_optimizer": "it keeps partitions and their gradients elsewhere",
    "zero_optimization.offload_param": "it keeps partitions elsewhere",
    "zero_optimization.zenflow": "it steps on parts of a partition at other times",
    "zero_optimization.zero_hpz_partition_size": "it keeps a second set of partitions",
    "zero_optimization.zero_quantized_nontrainable_weights": "a checkpoint needs exact values",
    "fp16": "its loss scaling skips steps that the optimizer counts; take train.precision=bf16",
    "bf16": "its weights are bf16 copies; take train.precision=bf16, which keeps fp32 weights",
    "gradient_clipping": "the optimizer has taken in a gradient before DeepSpeed clips it; take optimizer.clip",
}
_OFF = {"zero_optimization.zero_hpz_partition_size": 1}


def refuse_unsupported(deepspeed_config: Mapping[str, Any]) -> None:
    """Refuse what rules for whole tensors and rows cannot be kept under.

    Raises:
        ConfigError: Naming the key of DeepSpeed's configuration, and why.
    """
    for key, reason in _REASONS.items():
        value: Any = deepspeed_config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, Mapping):
            value = value.get("enabled", value.get("device", "on") != "none")
        if value and value != _OFF.get(key):
            raise ConfigError(f"DeepSpeed's setting {key} cannot be used with partitioned tensors: {reason}; remove it")


class ZeroPartitions:
    """This rank's partitions in an engine of stage 1, 2 or 3.

    Args:
        engine: A ``DeepSpeedEngine``.
        params: The parameters that are trained, in the order in which slices shall count them.

    Attributes:
        flats: fp32 tensors that DeepSpeed updates and publishes to the model.
        slices: Which slice lies where in them.
    """

    def __init__(self, engine: Any, params: Sequence[Tensor]) -> None:
        self._zero = engine.optimizer
        self._sharded = engine.zero_optimization_stage() == 3
        name = "fp32_partitioned_groups_flat" if self._sharded else "single_partition_of_fp32_groups"
        self.flats: list[Tensor] = getattr(self._zero, name)
        find = self._shard if self._sharded else self._fragment
        found = (find(index, param) for index, param in enumerate(params))
        self.slices = [own for own in found if own is not None]

    def gradients(self) -> list[Tensor]:
        """The mean over the ranks of the gradients of the last backward, for each slice, [numel]; may be overwritten.

        If DeepSpeed accumulates: of all since the last step, and only after the last backward before one.
        """
        pieces = {flat: _Pieces(tensors) for flat, tensors in self._zero.averaged_gradients.items()}
        return [pieces[own.flat].find(own.offset, own.numel) for own in self.slices]

    def forget_gradients(self) -> None:
        """Between a backward and the next forward, in place of a step: the next backward starts from nothing."""
        self._zero.zero_grad()

    def whole_weights(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """What the state of ``model`` names, shared tensors once; on all ranks at once, right on rank 0 only."""
        met = set()
        for name, value in model.state_dict(keep_vars=True).items():
            if id(value) not in met:
                met.add(id(value))
                yield name, self.whole(value)

    @torch.no_grad()
    def whole(self, value: Any) -> Tensor:
        """A parameter, trained or not, or a buffer; on all ranks at once, right on rank 0 only."""
        if not hasattr(value, "ds_id"):
            return cast(Tensor, value.detach())
        size = value.ds_tensor.numel()
        aligned = torch.zeros(value.ds_numel_aligned, dtype=value.dtype, device=value.ds_tensor.device)
        aligned[dist.get_rank() * size :][:size] = value.ds_tensor
        if dist.get_world_size() > 1:
            dist.reduce(aligned, 0)
        return aligned[: value.ds_numel].view(value.ds_shape)

    def _fragment(self, tensor: int, param: Any) -> TensorSlice | None:
        """Stages 1 and 2."""
        mapping = param._hp_mapping
        if mapping is None:
            return None
        here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
        return TensorSlice(tensor, here.start, here.numel, mapping.param_group_index, there.start)

    def _shard(self, tensor: int, param: Any) -> TensorSlice | None:
        """Stage 3."""
        flat, offset, size = self._zero.grad_position[self._zero.get_param_id(param)]
        start = dist.get_rank() * size
        numel = min(size, param.ds_numel - start)
        return TensorSlice(tensor, start, numel, flat, offset) if numel > 0 else None


class _Pieces:
    """Tensors that stand for their concatenation."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._starts, self._tensors = [0], [tensor.view(-1) for tensor in tensors]
        for tensor in self._tensors:
            self._starts.append(self._starts[-1] + tensor.numel())

    def find(self, offset: int, numel: int) -> Tensor:
        """Elements ``offset ... offset + numel - 1``, which lie in one of the tensors."""
        index = bisect_right(self._starts, offset) - 1
        begin = offset - self._starts[index]
        return self._tensors[index][begin : begin + numel]
