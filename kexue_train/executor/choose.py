"""The executor that a run's configuration asks for."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

from kexue_train.executor.config import ExecutionConfig
from kexue_train.executor.interface import Executor
from kexue_train.executor.local import LocalExecutor
from kexue_train.executor.ray_executor import RayExecutor


class DataStageConfig(Protocol):
    """What every stage with tasks reads of a run configuration."""

    @property
    def seed(self) -> int:
        """The seed of the run."""
        ...

    @property
    def execution(self) -> ExecutionConfig:
        """Where the work runs."""
        ...

    @property
    def num_cpus(self) -> int:
        """CPUs of a local Ray: enough for the tasks and for the workers of training, since it starts once."""
        ...


def choose_executor(config: DataStageConfig) -> Executor:
    """Return where the tasks of a data stage run; a Ray cluster is joined or started when it is first used."""
    return _executor(config.execution, config.num_cpus)


@lru_cache(maxsize=1)
def _executor(execution: ExecutionConfig, num_cpus: int) -> Executor:  # kept: the next stage takes the same processes
    if execution.tasks == "local":
        return LocalExecutor(execution.num_tasks_at_once)
    return RayExecutor(
        execution.ray_address,
        num_cpus,
        custom_resource=execution.data_resource,
        timeout=execution.cluster_timeout,
    )
