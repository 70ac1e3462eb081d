"""Where the tasks of a data stage run: here, in local processes, or on Ray. A stage knows only ``Executor``.

This is one of the two doors to Ray (the other: ``train/ray_launch.py``).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kexue_train.errors import ResourceError

Item = TypeVar("Item")
Result = TypeVar("Result")

_ATTEMPTS = 3


class Executor(Protocol):
    """Maps a function over items; the results come as they finish."""

    @property
    def num_workers(self) -> int:
        """How many tasks run at once."""
        ...

    def map_unordered(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Yield (index of the item, result) as tasks finish; never more than a few tasks per worker are in flight.

        ``function`` must be importable and may be run again after a lost worker, so it must be idempotent.
        An exception of ``function`` keeps its class and ends the map.
        """
        ...


class LocalExecutor:
    """Local processes; with one worker, this process itself."""

    def __init__(self, num_workers: int = 1) -> None:
        self.num_workers = num_workers

    def map_unordered(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """See ``Executor``; a killed worker's tasks are tried again, three times in all."""
        if self.num_workers == 1 or len(items) <= 1:
            for index, item in enumerate(items):
                yield index, function(item)
            return
        left = dict(enumerate(items))
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                for index, result in self._map_once(function, left):
                    del left[index]
                    yield index, result
                return
            except BrokenProcessPool:
                if attempt == _ATTEMPTS:
                    raise ResourceError(
                        f"a worker process was killed {_ATTEMPTS} times, most likely for lack of memory; use fewer "
                        "--workers or a smaller --memory, then run the same command again: finished work is kept"
                    ) from None

    def _map_once(self, function: Callable[[Item], Result], items: dict[int, Item]) -> Iterator[tuple[int, Result]]:
        # spawn: a forked child would share the parent's locks, threads and Arrow memory pool.
        context = multiprocessing.get_context("spawn")
        todo = iter(list(items.items()))
        with ProcessPoolExecutor(
            min(self.num_workers, len(items)), mp_context=context, initializer=_end_with_parent
        ) as pool:
            try:
                running: dict[Future[Result], int] = {}
                while True:
                    for index, item in todo:
                        running[pool.submit(function, item)] = index
                        if len(running) >= 2 * self.num_workers:
                            break
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield running.pop(future), future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class RayExecutor:
    """Ray tasks on a local cluster started for this run, or on a running one.

    Args:
        address: Address of a running cluster, or None for a local one.
        num_cpus: CPUs of the local cluster.
    """

    def __init__(self, address: str | None = None, num_cpus: int | None = None) -> None:
        self._address, self._num_cpus = address, num_cpus

    @cached_property
    def num_workers(self) -> int:
        """CPUs of the cluster, joined or started at the first question: a run with nothing to do never asks."""
        connect_ray(self._address, self._num_cpus)
        import ray  # noqa: PLC0415  # a door

        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map_unordered(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """See ``Executor``; tasks of a lost worker or node are run again by Ray, three times in all."""
        connect_ray(self._address, self._num_cpus)
        import ray  # noqa: PLC0415  # a door

        remote = ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(_call)
        todo, running = iter(enumerate(items)), {}
        try:
            while True:
                for index, item in todo:
                    running[remote.remote(function, item)] = index
                    if len(running) >= 2 * self.num_workers:
                        break
                if not running:
                    return
                done, _ = ray.wait(list(running), num_returns=1)
                for reference in done:
                    yield running.pop(reference), _ray_result(reference)
        finally:
            for reference in running:
                ray.cancel(reference)


def connect_ray(address: str | None, num_cpus: int | None) -> None:
    """Join the cluster at ``address`` (None: the one RAY_ADDRESS names) or start a local one; twice is as once.

    Raises:
        ResourceError: If Ray is not installed, or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", "1")  # Ray's default is to retry a task that never fits without end
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    try:
        import ray  # noqa: PLC0415  # a door
    except ImportError:
        raise ResourceError(
            "Ray is not installed; install it with pip install 'kexue_train[cluster]', "
            "or run with --workers N on this machine alone"
        ) from None
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _require_reachable(address)
    # ray.init replaces the handlers of the main thread, after which a cancelled flow counts as crashed.
    on_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if on_main else {}
    try:
        ray.init(
            address=address or "local",  # None would also join a cluster that somebody started on this machine
            **({} if address else _local_cluster(num_cpus)),
            log_to_driver=False,
            logging_level="error",
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray cluster"
        raise ResourceError(
            f"{where} cannot be reached or started ({_first_line(error)}); check 'ray status' and the address"
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _require_reachable(address: str) -> None:
    """Refuse at once where ``ray.init`` would wait for minutes; names such as ``auto`` are left to Ray."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(
            f"the Ray cluster at {address} cannot be reached ({error}); "
            "check that its head runs ('ray status' there) and that the address is the one 'ray start --head' printed"
        ) from None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _local_cluster(num_cpus: int | None) -> dict[str, Any]:
    return {
        "num_cpus": num_cpus,
        "include_dashboard": False,
        "object_store_memory": 200 * 2**20,  # tasks exchange file names, not data
        # Ray resolves 127.0.0.1 to the outer address, which a firewall may close; another loopback address stays one.
        "_node_ip_address": "127.0.0.2" if Path("/proc/net").exists() else None,
    }


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    return function(item)  # Ray takes no functools.partial as a task, but as an argument


def _ray_result(reference: Any) -> Any:
    import ray  # noqa: PLC0415  # a door

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
        raise ResourceError(
            f"a Ray worker was lost {_ATTEMPTS} times, most likely for lack of memory ({_first_line(error)}); "
            "use a smaller --memory or a larger node, then run the same command again: finished work is kept"
        ) from None


def _end_with_parent() -> None:
    """Let a worker end when its parent is killed, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        while parent is not None and os.getppid() == parent.pid:
            parent.join(timeout=1)  # returns at once when the parent ends
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
