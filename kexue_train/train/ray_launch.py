"""Start the training workers with Ray Train, on one machine or a cluster.

One of the two doors to Ray (the other: ``executor/``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kexue_train.errors import ConfigError, KexueError, ResourceError
from kexue_train.executor import connect_ray
from kexue_train.runtime import available_cpus
from kexue_train.train.distributed import choose_backend, collective_timeout, use_interface_towards
from kexue_train.train.faults.stop import Ending
from kexue_train.train.faults.supervise import MachineDrained, WorkersLost, run_with_restarts
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.worker import run_worker

_SECONDS_FOR_ROOM = 600
"""How long to wait for the cluster to have room for the fewest workers; machines may be on their way."""
_SECONDS_TO_START = 60
"""How long to wait for more than the fewest: a lost machine may be counted for a while."""


def train_on_ray(config: JobConfig, samples: Path, out_dir: Path, *, address: str | None) -> None:
    """Train with Ray Train workers; returns when they have ended.

    Each start takes ``config.train.num_workers`` workers or, where the cluster has lost machines, as many as it has
    room for and the batch sizes multiply out for, down to ``config.train.min_workers``.

    Raises:
        ResourceError: If the cluster cannot be reached, or never has room for the fewest workers.
        TrainingError: If workers were lost more often than ``config.train.max_restarts``.
        KexueError: What a worker found wrong.
    """
    connect_ray(address, max(available_cpus(), config.train.num_workers))
    paths = TrainDir(out_dir)
    run_with_restarts(lambda: _run(config, samples, paths), paths, max_restarts=config.train.max_restarts)


def workers_now(config: JobConfig, room: int) -> int:
    """How many workers to start where ``room`` of them have room: the most that the batch sizes multiply out for."""
    train = config.train
    allowed = range(train.num_workers, (train.min_workers or train.num_workers) - 1, -1)
    counts = [count for count in allowed if _multiplies_out(config, count)] or [train.num_workers]
    return next((count for count in counts if count <= room), counts[-1])


def _multiplies_out(config: JobConfig, num_workers: int) -> bool:
    values = config.model_dump(mode="json")
    values["train"] |= {"num_workers": num_workers, "min_workers": None}
    try:
        JobConfig.parse(values, where="train")
    except ConfigError:
        return False
    return True


def _run(config: JobConfig, samples: Path, paths: TrainDir) -> None:
    import ray.train  # noqa: PLC0415  # a door
    from ray.train.torch import TorchConfig, TorchTrainer  # noqa: PLC0415

    train = config.train
    use_gpu = train.device == "cuda" or (train.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    room = _room("GPU" if use_gpu else "CPU")
    count = workers_now(config, room)
    enough = count == (train.min_workers or train.num_workers)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_SECONDS_FOR_ROOM if enough else _SECONDS_TO_START)
    folders = {"samples": str(samples.absolute()), "out": str(paths.root.absolute())}
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"config": config.model_dump(mode="json")} | folders,
        scaling_config=ray.train.ScalingConfig(num_workers=count, use_gpu=use_gpu),
        torch_config=TorchConfig(
            backend=choose_backend(train.backend, "cuda" if use_gpu else "cpu"),
            timeout_s=int(collective_timeout(train.hang_timeout).total_seconds()),
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
        # Ray Train takes Ctrl-C for itself when it runs in the main thread, and would not let the workers save.
        with ThreadPoolExecutor(1, thread_name_prefix="ray-train") as thread:
            fit = thread.submit(trainer.fit)
            try:
                fit.result()
            finally:
                if not fit.done():  # a signal ended the waiting: end the workers
                    ray.shutdown()
    except ray.train.TrainingFailedError as error:
        raise _explained(error, count, room, "GPU" if use_gpu else "CPU") from error


def _room(resource: str) -> int:
    """How many workers the machines that are there to stay have room for, one per CPU or GPU."""
    import ray  # noqa: PLC0415  # a door

    leaving = _draining_nodes()
    staying = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return sum(int(node["Resources"].get(resource, 0)) for node in staying)


def _explained(error: Any, count: int, room: int, resource: str) -> KexueError:
    """What a failure of Ray Train means."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError  # noqa: PLC0415  # nowhere public

    if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        return ResourceError(
            f"the Ray cluster had no room for {count} training workers: they take one {resource} each, and its "
            f"machines have {room} in all; add machines, or lower train.num_workers or train.min_workers"
        )
    failures = getattr(error, "worker_failures", {})
    causes = [_root(failure) for _, failure in sorted(failures.items())]
    for cause in causes:
        if isinstance(cause, KexueError):
            return cause
    words = "; ".join(f"rank {rank}: {_last_line(_root(failure))}" for rank, failure in sorted(failures.items()))
    return WorkersLost(f"the training workers were lost: {words or _last_line(error)}")


def _root(error: BaseException) -> BaseException:
    """What the worker raised, without what Ray put around it."""
    while True:
        inner = getattr(error, "cause", None) or getattr(error, "_base_exc", None) or error.__cause__
        if not isinstance(inner, BaseException) or isinstance(error, KexueError):
            return error
        error = inner


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _ray_worker(job: dict[str, Any]) -> None:
    import ray.train  # noqa: PLC0415  # a door

    context = ray.train.get_context()
    os.environ |= {"RANK": str(context.get_world_rank()), "LOCAL_RANK": str(context.get_local_rank())}
    if sys.platform == "linux" and context.get_local_world_size() == context.get_world_size():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # on one machine; its name need not resolve
    elif "MASTER_ADDR" in os.environ:
        use_interface_towards(os.environ["MASTER_ADDR"])
    config = JobConfig.parse(job["config"], where="train")
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
