"""Bring a checkpoint to every rank. Only rank 0 needs the folder, so machines may have disks of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.train.checkpoint.format import TrainerState, read_checkpoint
from kexue_train.train.distributed import on_first_rank

_Outline = dict[str, tuple[torch.Size, torch.dtype]]


class Restored(NamedTuple):
    """A checkpoint in memory, the same on every rank."""

    path: Path
    """On the machine of rank 0."""
    state: TrainerState
    weights: dict[str, Tensor]
    optimizer_tensors: dict[str, Tensor]


@dataclass
class _Reading:
    """What rank 0 tells the others, and what it has read."""

    find: Callable[[], Path | None]
    found: Restored | None = None

    def __call__(self) -> tuple[Path, TrainerState, _Outline, _Outline] | None:
        path = self.find()
        if path is None:
            return None
        self.found = Restored(path, *read_checkpoint(path))
        return path, self.found.state, _outline(self.found.weights), _outline(self.found.optimizer_tensors)


def restore(find: Callable[[], Path | None], device: torch.device) -> Restored | None:
    """Read the checkpoint that ``find`` gives on rank 0 and hand it to all ranks. A collective call.

    Args:
        find: Called on rank 0 only.
        device: Of this rank; the tensors go through it but end on the CPU.

    Returns:
        None if ``find`` gives None.

    Raises:
        KexueError: What ``find`` raises, on every rank.
    """
    reading = _Reading(find)
    told = on_first_rank(reading)
    if told is None or dist.get_world_size() == 1:
        return reading.found
    path, state, *outlines = told
    own = (reading.found.weights, reading.found.optimizer_tensors) if reading.found else (None, None)
    weights, optimizer_tensors = (
        _broadcast(outline, tensors, device) for outline, tensors in zip(outlines, own, strict=True)
    )
    return Restored(path, state, weights, optimizer_tensors)


def _outline(tensors: dict[str, Tensor]) -> _Outline:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _broadcast(outline: _Outline, own: dict[str, Tensor] | None, device: torch.device) -> dict[str, Tensor]:
    """Rank 0's tensors, one after another."""
    received = {}
    for name, (shape, dtype) in outline.items():
        tensor = own[name].to(device) if own else torch.empty(shape, dtype=dtype, device=device)
        dist.broadcast(tensor, src=0)
        received[name] = tensor.cpu()
    return received
