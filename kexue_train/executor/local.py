"""Tasks in processes of this machine."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from kexue_train.executor.interface import (
    ATTEMPTS,
    LOCAL_MACHINE,
    Fetch,
    Item,
    Result,
    check_at_once,
    require_alive,
)
from kexue_train.executor.worker_process import WorkerProcess, run_task, wait_for_answers
from kexue_train.foundation.errors import ResourceError


class LocalExecutor:
    """Local processes; with one worker, this process itself. The next map uses the processes of the last again."""

    def __init__(self, num_workers: int = 1) -> None:
        self.num_workers = num_workers
        self._idle: list[WorkerProcess] = []

    @property
    def workers_per_machine(self) -> int:
        """All workers: there is one machine."""
        return self.num_workers

    def machines(self) -> list[str]:
        """Return the one machine."""
        return [LOCAL_MACHINE]

    def map_unordered(
        self,
        function: Callable[..., Result],
        items: Sequence[Item],
        *,
        at_once: int | None = None,
        task_memory_bytes: int | None = None,  # noqa: ARG002  # the number of workers says it
        fetch: Callable[[Item], Sequence[Fetch]] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Map as ``Executor`` says, with one task per worker in flight; ``task_memory_bytes`` is ignored.

        The task of a lost worker is tried again; it is given up when it is lost three times and no other can finish.
        """
        check_at_once(at_once)
        num_workers = min(self.num_workers, at_once or self.num_workers, len(items))
        if num_workers > 1:
            yield from self._map_in_processes(function, items, fetch, num_workers)
            return
        for index, item in enumerate(items):
            yield index, run_task(function, item, _fetches(fetch, item))

    def _map_in_processes(
        self,
        function: Callable[..., Result],
        items: Sequence[Item],
        fetch: Callable[[Item], Sequence[Fetch]] | None,
        num_workers: int,
    ) -> Iterator[tuple[int, Result]]:
        queue = _Queue(len(items), num_workers)
        workers = [worker for worker in self._idle if worker.is_alive()][:num_workers]
        self._idle = []
        try:
            while len(workers) < num_workers:
                workers.append(WorkerProcess())
            while queue.todo or any(worker.task is not None for worker in workers):
                for worker in workers:
                    if worker.task is None and queue.todo:
                        index = queue.todo.popleft()
                        worker.give(index, function, items[index], _fetches(fetch, items[index]))
                for worker in wait_for_answers(workers):
                    index, answer = worker.take()
                    if answer is None:
                        queue.count_loss(index, worker.ending())
                        workers[workers.index(worker)] = WorkerProcess()
                    else:
                        queue.count_result()
                        yield index, answer.result()
            queue.require_empty()
            self._idle, workers = workers, []
        finally:
            for worker in workers:
                worker.kill()


class _Queue:
    """The tasks to be done, by number. A task whose worker was lost is tried again; lost three times, it has to wait.

    It waits for a result of another task, which may have left it too little memory; when no result is due, the
    map is given up. So a long run may lose any number of workers, but one that gets nowhere ends soon.
    """

    def __init__(self, num_tasks: int, num_workers: int) -> None:
        self.todo = deque(range(num_tasks))
        self._waiting: list[int] = []
        self._losses = Counter[int]()  # since the last result
        self._most_losses = ATTEMPTS * num_workers
        self._last_ending = ""

    def count_result(self) -> None:
        self._losses.clear()
        self.todo.extend(self._waiting)
        self._waiting.clear()

    def count_loss(self, task: int, ending: str) -> None:
        self._last_ending = ending
        self._losses[task] += 1
        if self._losses[task] < ATTEMPTS:
            self.todo.appendleft(task)
        else:
            self._waiting.append(task)
        if self._losses.total() >= self._most_losses:
            self._give_up()

    def require_empty(self) -> None:
        if self._waiting:
            self._give_up()

    def _give_up(self) -> NoReturn:
        raise ResourceError(
            f"a worker process was lost {ATTEMPTS} times, most likely for lack of memory (the last one ended "
            f"{self._last_ending}); use fewer --workers or a smaller --memory, then run the same command again: "
            "finished work is kept"
        )


def _fetches(fetch: Callable[[Item], Sequence[Fetch]] | None, item: Item) -> Sequence[Fetch] | None:
    if fetch is None:
        return None
    wanted = fetch(item)
    require_alive(wanted, [LOCAL_MACHINE])
    return wanted
