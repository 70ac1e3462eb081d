"""Start the training workers with Ray Train, on one machine or a cluster.

One of the two doors to Ray (the other: ``executor/``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kexue_train.executor import cluster_address, connect_ray, joined_from_outside
from kexue_train.executor.config import ExecutionConfig
from kexue_train.executor.ray_machines import CUSTOM_RESOURCE_AMOUNT, Node, machines_with, wait_for_machines
from kexue_train.foundation.errors import ConfigError, KexueError, ResourceError
from kexue_train.foundation.json_logs import log_context
from kexue_train.foundation.operating_system import is_linux
from kexue_train.foundation.runtime import available_cpus
from kexue_train.foundation.shown import keep_streams_printable
from kexue_train.train.device_errors import find_cause
from kexue_train.train.distributed import choose_backend, collective_timeout, use_interface_towards
from kexue_train.train.faults.stop import Ending
from kexue_train.train.job import JobConfig, TrainDir, values_to_show, with_mirror
from kexue_train.train.restarts import MachineDrained, WorkersLost, run_with_restarts
from kexue_train.train.worker import run_worker

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_SECONDS_TO_STOP = 3.0
_SECONDS_TO_START = 60.0
"""How long to wait at least for machines that are there; a lost one may be counted for a while."""


def train_on_ray(config: JobConfig, samples: Path, out_dir: Path, *, execution: ExecutionConfig) -> None:
    """Train with Ray Train workers; returns when they have ended.

    Each start takes ``config.train.num_workers`` workers or, where the cluster has lost machines, as many as it has
    room for and the batch sizes multiply out for, down to ``config.train.workers.min_workers``.

    Raises:
        ResourceError: If the cluster cannot be reached, or has no room for the fewest workers in time.
        TrainingError: If workers were lost more often than ``config.train.faults.max_restarts``.
        KexueError: What a worker found wrong.
    """
    connect_ray(execution.ray_address, max(available_cpus(), config.train.num_workers))
    import ray  # noqa: PLC0415  # a door

    launch = _train_from_outside if joined_from_outside() else _train
    paths = TrainDir(out_dir.absolute())
    before = _length(paths.metrics)
    # Ray Train takes Ctrl-C for itself when it runs in the main thread, and would not let the workers save.
    with ThreadPoolExecutor(1, thread_name_prefix="ray-train") as thread:
        training = thread.submit(launch, config, samples.absolute(), paths.root, execution)
        try:
            while not wait([training], timeout=_POLL_SECONDS).done:
                if paths.stop.exists() and _length(paths.metrics) == before:
                    wait([training], timeout=_SECONDS_TO_STOP)
                    return  # no step is done, so there is nothing to save: no need to wait for machines
            training.result()
        finally:
            if not training.done():  # or a signal has ended the waiting: end the workers
                ray.shutdown()


def _train(config: JobConfig, samples: Path, out_dir: Path, execution: ExecutionConfig) -> None:
    paths = TrainDir(out_dir)
    run_with_restarts(
        lambda: _run(config, samples, paths, execution), paths, max_restarts=config.train.faults.max_restarts
    )


def _train_from_outside(config: JobConfig, samples: Path, out_dir: Path, execution: ExecutionConfig) -> None:
    """Let a task be the driver, since Ray Train needs one on the cluster."""
    import ray  # noqa: PLC0415  # a door

    inside = execution.model_copy(update={"ray_address": "auto"})
    task = ray.remote(num_cpus=0, max_retries=0)(_train)
    try:
        ray.get(task.remote(config, samples, out_dir, inside))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _length(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def workers_now(config: JobConfig, room: int) -> int:
    """How many workers to start where ``room`` of them have room: the most that the batch sizes multiply out for."""
    train = config.train
    allowed = range(train.num_workers, (train.workers.min_workers or train.num_workers) - 1, -1)
    counts = [count for count in allowed if _multiplies_out(config, count)] or [train.num_workers]
    return next((count for count in counts if count <= room), counts[-1])


def _multiplies_out(config: JobConfig, num_workers: int) -> bool:
    values = config.model_dump(mode="json")
    values["train"]["num_workers"] = num_workers
    values["train"]["workers"]["min_workers"] = None
    try:
        JobConfig.parse(values, where="train")
    except ConfigError:
        return False
    return True


def _run(config: JobConfig, samples: Path, paths: TrainDir, execution: ExecutionConfig) -> None:
    import ray.train  # noqa: PLC0415  # a door
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

    train = config.train
    use_gpu = _takes_gpus(config, execution)
    pool = _Pool("GPU" if use_gpu else "CPU", execution.train_resource)
    _wait_for_room(config, pool, paths, execution)
    if paths.stop.exists():
        return
    count = workers_now(config, pool.room())
    if count < train.num_workers:
        logger.warning("starting %d of %d workers, for which the cluster has room", count, train.num_workers)
    fewest = count == _fewest(config)
    seconds = max(_SECONDS_TO_START, execution.cluster_timeout) if fewest else _SECONDS_TO_START
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(seconds)
    folders = {"samples": str(samples.absolute()), "out": str(paths.root.absolute())}
    trainer = TorchTrainer(
        partial(_ray_worker, train.checkpoints.mirror),  # not in the configuration, which Ray keeps and shows
        train_loop_config={"config": _on_device(config, "cuda" if use_gpu else "cpu"), "logs": log_context()} | folders,
        scaling_config=ray.train.ScalingConfig(
            num_workers=count,
            use_gpu=use_gpu,
            resources_per_worker=pool.share(),
            placement_strategy=execution.placement.upper(),
        ),
        torch_config=TorchConfig(
            backend=choose_backend(train.workers.backend, "cuda" if use_gpu else "cpu"),
            timeout_s=int(collective_timeout(train.faults.hang_timeout).total_seconds()),
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=str(paths.logs.absolute()),
            # Who is started again, and how many of them, is decided here, before every start.
            failure_config=ray.train.FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explained(error, count, pool, fewest) from error


@dataclass(frozen=True)
class _Pool:
    """The machines that training workers are started on, each worker on one CPU or GPU."""

    resource: Literal["CPU", "GPU"]
    custom_resource: str | None

    def nodes(self) -> list[Node]:
        """Those that are there to stay."""
        leaving = _draining_nodes()
        return [node for node in machines_with(self.resource, self.custom_resource) if node.node_id not in leaving]

    def room(self) -> int:
        """How many workers they have room for."""
        return sum(int(node.gpus if self.resource == "GPU" else node.cpus) for node in self.nodes())

    def share(self) -> dict[str, float]:
        """What a worker takes, in Ray's resources."""
        return {
            self.resource: 1,
            **({self.custom_resource: CUSTOM_RESOURCE_AMOUNT} if self.custom_resource and self.where() else {}),
        }

    def where(self) -> str:
        """The restriction to marked machines in words, if there is one."""
        return (
            f" on machines with the resource {self.custom_resource!r}"
            if any(n.has_custom_resource for n in self.nodes())
            else ""
        )


def _takes_gpus(config: JobConfig, execution: ExecutionConfig) -> bool:
    """Whether workers train on GPUs; ``auto``: if each of the fewest gets one, now or from an autoscaler."""
    device, fewest = config.train.device, _fewest(config)
    if device != "auto":
        return device == "cuda"
    room = _Pool("GPU", execution.train_resource).room()
    if max(room, _gpus_to_come()) >= fewest:
        return True
    if room or cluster_address(execution.ray_address) is not None:
        logger.warning(
            "training asks for %d GPUs, one for each worker, and the cluster has %d: as train.device=auto, it runs on "
            "CPUs; set train.device=cuda to wait for GPUs, or train.num_workers to as many as there are",
            fewest, room,
        )  # fmt: skip
    return False


def _gpus_to_come() -> float:
    """How many GPUs the cluster can have in all, if an autoscaler has told."""
    import ray  # noqa: PLC0415  # a door

    most: dict[str, float] | None = ray._private.state.state.get_max_resources_from_cluster_config()
    return (most or {}).get("GPU", 0)


def _on_device(config: JobConfig, device: Literal["cpu", "cuda"]) -> dict[str, Any]:
    """Return the job for workers that find the device decided, since the backend follows from it."""
    values = values_to_show(config)
    values["train"]["device"] = device
    return values


def _fewest(config: JobConfig) -> int:
    """With how many workers training starts at least."""
    return workers_now(config, room=0)


def _wait_for_room(config: JobConfig, pool: _Pool, paths: TrainDir, execution: ExecutionConfig) -> None:
    fewest = _fewest(config)

    def lack() -> str | None:
        room = pool.room()
        if room >= fewest:
            return None
        return (
            f"training asks for {fewest} {pool.resource}s{pool.where()}, one for each worker (train.num_workers, "
            f"train.workers.min_workers), and {room} are there"
        )

    may_grow = cluster_address(execution.ray_address) is not None
    wait_for_machines(
        lack,
        [pool.share()] * fewest,
        seconds=execution.cluster_timeout if may_grow else 0.0,
        is_stopped=paths.stop.exists,
    )


def _explained(error: Any, count: int, pool: _Pool, fewest: bool) -> KexueError:
    """What a failure of Ray Train means."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError  # noqa: PLC0415  # nowhere public

    if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        problem = (
            f"the Ray cluster had no room for {count} training workers: they take one {pool.resource} each"
            f"{pool.where()}, and there are {pool.room()}, some of them busy"
        )
        if not fewest:  # a lost machine was counted; the next start knows
            return WorkersLost(problem)
        return ResourceError(
            f"{problem}; wait for what runs there ('ray status'), add machines, lower train.num_workers or "
            "train.workers.min_workers, or wait longer (execution.cluster_timeout)"
        )
    failures = getattr(error, "worker_failures", {})
    causes = [_root(failure) for _, failure in sorted(failures.items())]
    for cause in causes:
        if isinstance(cause, KexueError):
            return cause
    words = "; ".join(f"rank {rank}: {_telling_line(_root(failure))}" for rank, failure in sorted(failures.items()))
    return WorkersLost(f"the training workers were lost: {words or _telling_line(error)}")


def _root(error: BaseException) -> BaseException:
    """What the worker raised, without what Ray put around it."""
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None) or error.__cause__
        if not isinstance(inner, BaseException) or isinstance(error, KexueError):
            return error
        error = inner


def _telling_line(error: BaseException) -> str:
    text = str(error).strip()
    return find_cause(text) or (text.splitlines()[-1] if text else type(error).__name__)


def _ray_worker(mirror: str | None, job: dict[str, Any]) -> None:
    import ray.train  # noqa: PLC0415  # a door

    context = ray.train.get_context()
    os.environ |= job["logs"] | {
        "RANK": str(context.get_world_rank()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
    }
    if is_linux() and context.get_local_world_size() == context.get_world_size():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # on one machine; its name need not resolve
    elif "MASTER_ADDR" in os.environ:
        use_interface_towards(os.environ["MASTER_ADDR"])
    keep_streams_printable()
    config = with_mirror(JobConfig.parse(job["config"], where="train"), mirror)
    ending = run_worker(config, Path(job["samples"]), Path(job["out"]), is_draining=_machine_is_draining)
    if ending is Ending.DRAINED:
        raise MachineDrained("a machine is taken away; the workers have saved a checkpoint and start elsewhere")


def _machine_is_draining() -> bool:
    """Whether Ray has announced that it will take this machine away, as of a preempted instance."""
    import ray  # noqa: PLC0415  # a door

    return ray.get_runtime_context().get_node_id() in _draining_nodes()


def _draining_nodes() -> Container[str]:
    import ray  # noqa: PLC0415  # a door

    # ray.train.get_preemption_info tells the same, but to workers only, and has to be called by all of them at once.
    nodes: Container[str] = ray._private.state.state.get_draining_nodes()
    return nodes
