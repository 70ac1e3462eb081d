"""Copies of tensors in host memory, so that training may go on changing the originals while the copies are written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class HostCopy:
    """Buffers for one set of tensors, taken at the first copy and used again, page-locked for tensors on CUDA."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Contiguous copies on the CPU, good until the next ``take``; returns when they are whole."""
        copies = {name: self._buffer(name, tensor).copy_(tensor, non_blocking=True) for name, tensor in tensors.items()}
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        return copies

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = torch.empty(like.shape, dtype=like.dtype, pin_memory=like.is_cuda)
            self._buffers[name] = buffer
        return buffer
