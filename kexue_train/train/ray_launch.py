"""Start the training workers with Ray Train, which restarts them from the last checkpoint when one dies.

One of the two doors to Ray (the other: ``executor/``).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from kexue_train.errors import TrainingError
from kexue_train.executor import connect_ray
from kexue_train.runtime import available_cpus
from kexue_train.train.job import JobConfig
from kexue_train.train.worker import run_worker


def train_on_ray(config: JobConfig, samples: Path, out_dir: Path, *, address: str | None) -> None:
    """Train with ``config.train.num_workers`` Ray Train workers; returns when they have ended.

    Raises:
        TrainingError: If the workers died more often than ``config.train.max_restarts``.
    """
    connect_ray(address, max(available_cpus(), config.train.num_workers))
    import ray.train  # noqa: PLC0415  # a door
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

    use_gpu = config.train.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= config.train.num_workers
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "samples": str(samples.absolute()),
            "out": str(out_dir.absolute()),
        },
        scaling_config=ray.train.ScalingConfig(num_workers=config.train.num_workers, use_gpu=use_gpu),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(out_dir.absolute() / "logs"),
            failure_config=ray.train.FailureConfig(max_failures=config.train.max_restarts),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(
            f"the training workers failed: {_last_line(error)}; see {out_dir / 'logs'}, then run the same command "
            "again: it resumes from the last checkpoint"
        ) from error


def _ray_worker(job: dict[str, Any]) -> None:
    import ray.train  # noqa: PLC0415  # a door

    context = ray.train.get_context()
    os.environ |= {"RANK": str(context.get_world_rank()), "LOCAL_RANK": str(context.get_local_rank())}
    if sys.platform == "linux" and context.get_local_world_size() == context.get_world_size():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # on one machine; its name need not resolve
    run_worker(JobConfig.parse(job["config"], where="train"), Path(job["samples"]), Path(job["out"]))


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1]
