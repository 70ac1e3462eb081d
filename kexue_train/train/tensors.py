"""Micro-batches as tensors: pinned where they are made, so that the copy to a device overlaps with its work."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import cast

import numpy as np
import torch
from torch import Tensor

from kexue_train.batches.collate import Batch, without_unused_slots

Tensors = dict[str, Tensor]


def to_tensors(batch: Batch) -> Tensors:
    """The same arrays as tensors (no copy)."""
    return {name: torch.from_numpy(array) for name, array in cast(dict[str, np.ndarray], batch).items()}


def pinned(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Tensors, None, None]:
    """The micro-batches as tensors, in page-locked memory if ``device`` is a CUDA one; closing this closes them.

    On a CPU, which gains nothing from shapes that never change, without the unused slots.
    """
    with closing(batches):
        for batch in batches:
            tensors = to_tensors(batch if device.type == "cuda" else without_unused_slots(batch))
            if device.type == "cuda":
                torch.cuda.set_device(device)  # of this thread: else memory of device 0 would be taken
                tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
            yield tensors


def to_device(tensors: Tensors, device: torch.device) -> Tensors:
    """The tensors on ``device``."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
