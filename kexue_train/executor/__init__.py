"""Where the tasks of a data stage run: here, in local processes, or on Ray. A stage knows only ``Executor``.

This is one of the two doors to Ray (the other: ``train/ray_launch.py``).
"""

from kexue_train.executor.choose import DataStageConfig, choose_executor
from kexue_train.executor.interface import Executor, Fetch
from kexue_train.executor.local import LocalExecutor
from kexue_train.executor.ray_cluster import cluster_address, connect_ray, current_machine, joined_from_outside
from kexue_train.executor.ray_executor import RayExecutor

__all__ = [
    "DataStageConfig",
    "Executor",
    "Fetch",
    "LocalExecutor",
    "RayExecutor",
    "choose_executor",
    "cluster_address",
    "connect_ray",
    "current_machine",
    "joined_from_outside",
]
