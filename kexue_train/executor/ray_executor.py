"""Tasks on Ray."""

from __future__ import annotations

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic

from kexue_train.executor.config import ExecutionConfig
from kexue_train.executor.interface import (
    ATTEMPTS,
    Fetch,
    Item,
    Result,
    check_at_once,
    machine_lost,
    require_alive,
)
from kexue_train.executor.ray_cluster import connect_ray
from kexue_train.executor.ray_machines import CUSTOM_RESOURCE_AMOUNT, Node, machines_with, wait_for_machines
from kexue_train.executor.worker_process import run_task
from kexue_train.foundation.errors import ResourceError

_FETCH_CPUS = 0.05
"""So that some fetches run on a machine beside its tasks, and never more than a few per CPU."""
_SECONDS_TO_STOP = 1.0
_USUAL = ExecutionConfig()


class RayExecutor:
    """Ray tasks on a local cluster started for this run, or on a running one.

    Args:
        address: Address of a running cluster, or None for a local one.
        num_cpus: CPUs of the local cluster.
        custom_resource: Name of Ray's custom resource that labels the machines to use; where none has it, all are.
        timeout: Seconds to wait for a machine, if no machine fits.
    """

    def __init__(
        self,
        address: str | None = None,
        num_cpus: int | None = None,
        *,
        custom_resource: str | None = _USUAL.data_resource,
        timeout: float = _USUAL.cluster_timeout,
    ) -> None:
        self._address, self._num_cpus = address, num_cpus
        self._custom_resource, self._timeout = custom_resource, timeout

    @cached_property
    def num_workers(self) -> int:
        """CPUs of the cluster, joined or started at the first question: a run with nothing to do never asks."""
        return max(1, int(sum(node.cpus for node in self._nodes())))

    @cached_property
    def workers_per_machine(self) -> int:
        """CPUs of the largest machine."""
        return max(1, int(max((node.cpus for node in self._nodes()), default=1)))

    def machines(self) -> list[str]:
        """Return the IP addresses of live nodes with CPUs and, where any node has it, the custom resource."""
        return sorted({node.machine for node in self._nodes()})

    def map_unordered(
        self,
        function: Callable[..., Result],
        items: Sequence[Item],
        *,
        at_once: int | None = None,
        task_memory_bytes: int | None = None,
        fetch: Callable[[Item], Sequence[Fetch]] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Map as ``Executor`` says; Ray runs the tasks of a lost worker or node again, three times in all.

        ``at_once`` and ``task_memory_bytes`` are said to Ray as shares of the largest machine: a smaller one runs
        fewer tasks, down to none. With ``fetch``, only one task per machine waits with its data for a free worker,
        since what is fetched fills the object store.
        """
        check_at_once(at_once)
        nodes = self._nodes()
        custom_resource = self._custom_resource if nodes[0].has_custom_resource else None
        share = share_of_machine(nodes, at_once, task_memory_bytes)
        slots = max(1, sum(share.fits(node) for node in nodes))
        # Twice the slots: a worker that ends finds its next task at hand. With fetches only one more task per machine
        # waits, since the data of a waiting task already lies in the object store.
        limit = slots + len(nodes) if fetch else 2 * slots
        in_flight = _InFlight[Item, Result](function, fetch, share, custom_resource)
        todo = deque(range(len(items)))
        try:
            while todo or in_flight.tasks:
                while todo and len(in_flight.tasks) < limit:
                    index = todo.popleft()
                    in_flight.submit(index, items[index])
                for index, result in in_flight.next_done():
                    if isinstance(result, _Retry):
                        todo.append(index)
                    else:
                        yield index, result
        finally:
            in_flight.stop()

    def _nodes(self) -> list[Node]:
        connect_ray(self._address, self._num_cpus)
        wait_for_machines(self._lack, [{"CPU": 1}], seconds=self._timeout)
        return machines_with("CPU", self._custom_resource)

    def _lack(self) -> str | None:
        return None if machines_with("CPU", self._custom_resource) else "the data stages need a machine with CPUs"


@dataclass(frozen=True)
class Share:
    """What one task takes of a machine."""

    cpus: float
    memory_bytes: int

    def fits(self, node: Node) -> int:
        """Return how many tasks run at once on ``node``."""
        by_memory = node.memory_bytes // self.memory_bytes if self.memory_bytes else math.inf
        return int(min(node.cpus // self.cpus, by_memory))


def share_of_machine(nodes: Sequence[Node], at_once: int | None, task_memory_bytes: int | None) -> Share:
    """Return the share with which exactly ``at_once`` tasks (None: one per CPU) fit the CPUs of the largest machine.

    With n tasks at once a task takes 1 / (n + 0.5) of the CPUs: n + 1 do not fit, and what is left, half a task's
    share, is for fetches. On a smaller machine of c CPUs one per CPU makes c tasks, too. The memory is cut to that of
    the largest machine, since Ray lets a task that fits nowhere wait without end.
    """
    cpus = max((node.cpus for node in nodes), default=1.0)
    memory = max((node.memory_bytes for node in nodes), default=0.0)
    num_tasks = max(1, min(at_once or int(cpus), int(cpus)))
    share = math.floor(cpus / (num_tasks + 0.5) * 10_000) / 10_000  # Ray counts in steps of 0.0001
    return Share(cpus=share, memory_bytes=int(min(task_memory_bytes or 0, memory)))


class _Retry:
    """In place of a result: what was fetched got lost, though its machine is alive."""


@dataclass(frozen=True)
class _Task:
    index: int
    wanted: Sequence[Fetch]
    fetched: Sequence[Any]


class _InFlight(Generic[Item, Result]):
    """The tasks of one map that Ray has, by their references."""

    def __init__(
        self,
        function: Callable[..., Result],
        fetch: Callable[[Item], Sequence[Fetch]] | None,
        share: Share,
        custom_resource: str | None,
    ) -> None:
        import ray  # noqa: PLC0415  # a door

        self.tasks: dict[Any, _Task] = {}
        self._function, self._fetch, self._custom_resource = function, fetch, custom_resource
        options = {
            "num_cpus": share.cpus,
            "memory": share.memory_bytes or None,
            "resources": {custom_resource: CUSTOM_RESOURCE_AMOUNT} if custom_resource else None,
            "max_retries": ATTEMPTS - 1,
        }
        self._task = ray.remote(**options)(_run_in)
        self._fetching = ray.remote(num_cpus=_FETCH_CPUS, max_retries=ATTEMPTS - 1)(_run_in)
        self._folder = Path.cwd()
        self._losses = Counter[int]()

    def submit(self, index: int, item: Item) -> None:
        """Hand a task to Ray, and what it fetches before it."""
        if self._fetch is None:
            self.tasks[self._task.remote(self._folder, run_task, self._function, item, None)] = _Task(index, [], [])
            return
        wanted = self._fetch(item)
        nodes = {node.machine: node.node_id for node in machines_with("CPU", self._custom_resource)}
        require_alive(wanted, nodes)
        if len(nodes) == 1:  # nothing to move: the task reads what it needs
            pinned = self._task.options(scheduling_strategy=_on(*nodes.values()))
            self.tasks[pinned.remote(self._folder, run_task, self._function, item, wanted)] = _Task(index, wanted, [])
            return
        fetched = [
            self._fetching.options(scheduling_strategy=_on(nodes[fetch.machine])).remote(
                self._folder, _run_fetch, fetch
            )
            for fetch in wanted
        ]
        # As arguments of their own, not in a list: Ray then moves the objects to where the task runs, before it runs.
        reference = self._task.remote(self._folder, _run_with_fetched, self._function, item, *fetched)
        self.tasks[reference] = _Task(index, wanted, fetched)

    def next_done(self) -> Iterator[tuple[int, Result | _Retry]]:
        """Wait for a task to end; yield index and result of those that have."""
        import ray  # noqa: PLC0415  # a door

        done, _ = ray.wait(list(self.tasks), num_returns=1)
        for reference in done:
            task = self.tasks.pop(reference)
            yield task.index, self._result(reference, task)

    def _result(self, reference: Any, task: _Task) -> Any:
        from ray import exceptions, get  # noqa: PLC0415  # a door

        lost = (exceptions.NodeDiedError, exceptions.ObjectLostError, exceptions.TaskUnschedulableError)
        killed = (exceptions.WorkerCrashedError, exceptions.OutOfMemoryError)
        try:
            return get(reference)
        except exceptions.RayTaskError as error:
            problem = error.cause  # of the task, or of a fetch it needed
            problem.add_note(f"in a Ray task:\n{error}")
        except (*lost, *killed) as error:
            problem = error
        if not isinstance(problem, (*lost, *killed)):
            raise problem from None
        if gone := {fetch.machine for fetch in task.wanted} - {
            node.machine for node in machines_with("CPU", self._custom_resource)
        }:
            raise machine_lost(gone) from None
        self._losses[task.index] += 1
        if isinstance(problem, lost) and task.wanted and self._losses[task.index] < ATTEMPTS:
            return _Retry()
        raise ResourceError(
            f"a Ray worker was lost {ATTEMPTS} times, most likely for lack of memory ({str(problem).splitlines()[0]}); "
            "use a smaller --memory or a larger node, then run the same command again: finished work is kept"
        ) from None

    def stop(self) -> None:
        """Kill what runs, lest it write on beside the same tasks of a later map."""
        import ray  # noqa: PLC0415  # a door

        if (
            not ray.is_initialized()
        ):  # an exception has kept the generator alive beyond Ray: asking would start it again
            return
        left = list(self.tasks)
        for reference in [*left, *(fetched for task in self.tasks.values() for fetched in task.fetched)]:
            ray.cancel(reference, force=True)
        if left:
            ray.wait(left, num_returns=len(left), timeout=_SECONDS_TO_STOP, fetch_local=False)


def _on(node_id: str) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415  # a door

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _run_in(folder: Path, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call ``function`` in the driver's folder, where that is mounted, so that relative paths mean the same."""
    if folder.is_dir():
        os.chdir(folder)
    return function(*arguments)


def _run_fetch(fetch: Fetch) -> Any:
    return fetch.function(fetch.argument)


def _run_with_fetched(function: Callable[..., Result], item: Item, *fetched: Any) -> Result:
    return function(item, list(fetched))
