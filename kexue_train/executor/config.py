"""Settings of the place where a run works; they change nothing about its result."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from kexue_train.foundation.config import Config
from kexue_train.foundation.runtime import available_cpus


class ExecutionConfig(Config):
    """Where the work runs; changes nothing about the result."""

    tasks: Literal["ray", "local"] = "ray"
    """Tasks of the data stages: on Ray, or in local processes."""
    ray_address: str | None = None
    """A running Ray cluster: HOST:6379 or "auto" on one of its machines, ray://HOST:10001 from outside; null: the one
    that RAY_ADDRESS names, or else a local one."""
    num_workers: int | None = Field(default=None, gt=0)
    """Tasks at once on this machine; null takes its CPUs."""
    data_resource: str | None = "data"
    """Custom resource that marks the machines of a Ray cluster for the data stages: where any has it, their tasks run
    on those alone. null: on all."""
    train_resource: str | None = "train"
    """Custom resource that marks the machines for training, likewise."""
    placement: Literal["pack", "spread"] = "pack"
    """Training workers on as few machines of a Ray cluster as possible, or spread over all."""
    cluster_timeout: float = Field(default=600.0, ge=0)
    """Seconds to wait for a Ray cluster that is smaller than asked, or busy, since machines may be on their way;
    0: fail at once."""

    @property
    def num_tasks_at_once(self) -> int:
        """Tasks at once on this machine."""
        return self.num_workers or available_cpus()
