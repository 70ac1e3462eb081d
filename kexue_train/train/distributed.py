"""The process group of the training workers."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.errors import ConfigError

_TIMEOUT = timedelta(minutes=10)


def choose_device(wanted: str) -> torch.device:
    """This worker's device.

    Raises:
        ConfigError: If CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError(
            "train.device=cuda, but torch sees no CUDA device here; set train.device=cpu, or check the driver and "
            "the torch build"
        )
    if wanted == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def join_process_group(device: torch.device) -> None:
    """Join the group that the launcher's environment describes (gloo on CPU, NCCL on CUDA), or make one of one."""
    if dist.is_initialized():  # Ray Train has set it up
        return
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "MASTER_PORT" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT)
    else:
        store = dist.TCPStore(  # type: ignore[attr-defined]  # documented, not listed as exported
            "127.0.0.1", 0, 1, is_master=True, timeout=_TIMEOUT
        )
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=_TIMEOUT)


def sum_over_ranks(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def same_on_all_ranks(value: str | None) -> str | None:
    """Rank 0's value on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
