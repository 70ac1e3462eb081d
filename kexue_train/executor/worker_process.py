"""One process that does one task at a time, and dies at once when it is told to or when its parent dies.

Not ``concurrent.futures``: its pool loses the tasks of all workers with one of them, cannot kill a running task, and
lets the interpreter wait at exit for what runs.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from multiprocessing import connection, resource_tracker
from typing import Any

from kexue_train.executor.interface import Fetch
from kexue_train.foundation.json_logs import enter_stage, logs_as_asked
from kexue_train.foundation.shown import keep_streams_printable

_IDLE_SECONDS = 5.0
"""A worker without a task ends after so long, so that a stage that is over holds no memory."""


@dataclass(frozen=True)
class Answer:
    """What became of a task: a value, or an error and its traceback in the worker."""

    value: Any
    error: BaseException | None = None
    traceback: str = ""

    def result(self) -> Any:
        """Return the value; raises the error instead, with its own class."""
        if self.error is None:
            return self.value
        self.error.add_note(f"in a worker process:\n{self.traceback}")
        raise self.error


class WorkerProcess:
    """The parent's side of a worker; ``task`` is the number of the task it does, or None."""

    def __init__(self) -> None:
        self.task: int | None = None
        # spawn: a forked child would share the parent's locks, threads and Arrow memory pool.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        # daemon: ended at exit even if an exception keeps the map's generator, and so this object, alive till then.
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        try:
            with _without_interrupts(), _without_program():
                self._process.start()
        finally:
            theirs.close()  # the worker's death must close the pipe

    def is_alive(self) -> bool:
        """Return whether the process runs; an idle one ends after a while."""
        return self._process.is_alive()

    def give(self, task: int, function: Callable[..., Any], item: Any, fetches: Sequence[Fetch] | None) -> None:
        """Send a task to an idle worker."""
        self.task = task
        with suppress(BrokenPipeError, ConnectionResetError):  # a dead worker shows when its answer is read
            self.pipe.send_bytes(pickle.dumps((function, item, fetches)))

    def take(self) -> tuple[int, Answer | None]:
        """Return the number of the task and its answer; None if the worker died instead."""
        assert self.task is not None
        task, self.task = self.task, None
        try:
            answer: Answer = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.kill()
            return task, None
        return task, answer

    def ending(self) -> str:
        """Return how a dead worker ended, for a message."""
        code = self._process.exitcode or 0
        return f"by signal {-code}" if code < 0 else f"with exit code {code}, see what it printed"

    def kill(self) -> None:
        """End the process, in the middle of a task or not; twice is as once."""
        self.pipe.close()
        self._process.kill()
        self._process.join()


def wait_for_answers(workers: Sequence[WorkerProcess]) -> list[WorkerProcess]:
    """Wait until a busy worker has answered or died; returns those that have."""
    busy = {worker.pipe: worker for worker in workers if worker.task is not None}
    return [busy[pipe] for pipe in connection.wait(list(busy)) if isinstance(pipe, connection.Connection)]


def run_task(function: Callable[..., Any], item: Any, fetches: Sequence[Fetch] | None) -> Any:
    """Do one task, the fetches before it."""
    if fetches is None:
        return function(item)
    return function(item, [fetch.function(fetch.argument) for fetch in fetches])


def _work(pipe: connection.Connection) -> None:
    """Run task after task in the worker, until no task comes for a while."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_streams_printable()
    enter_stage(None)  # it outlives the stage that it is started in
    with logs_as_asked(), suppress(EOFError, OSError):  # the parent has gone
        while pipe.poll(_IDLE_SECONDS):
            pipe.send_bytes(_answer(pipe.recv_bytes()))


def _answer(task: bytes) -> bytes:
    try:
        return pickle.dumps(Answer(run_task(*pickle.loads(task))))
    except BaseException as error:  # noqa: BLE001  # the boundary of the process: the parent raises it
        return _pickle_error(error, traceback.format_exc())


def _pickle_error(error: BaseException, trace: str) -> bytes:
    try:
        answer = pickle.dumps(Answer(None, error, trace))
        pickle.loads(answer)
    except Exception:  # noqa: BLE001  # whatever a foreign class raises here, its text is left
        return pickle.dumps(Answer(None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return answer


def _end_with_parent() -> None:
    """Watch the parent, since it may be killed while this process is in the middle of a long task."""
    parent = multiprocessing.parent_process()
    while parent is not None and os.getppid() == parent.pid:
        parent.join(timeout=1)  # returns at once when the parent ends
    os._exit(1)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back: a worker must not meet it while it starts, and the parent must not forget a started one."""
    resource_tracker.ensure_running()  # it would be started in here and let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_STARTING = threading.Lock()


@contextmanager
def _without_program() -> Iterator[None]:
    """Keep a worker from importing the module that this process runs by ``-m``, as multiprocessing would have it.

    Tasks are functions of other modules, and the program may be a flow, whose imports take seconds.
    """
    main = sys.modules["__main__"]
    with _STARTING:
        spec = main.__spec__
        if spec is not None:
            main.__spec__ = ModuleSpec("kexue_train.__main__", None)  # the name of what workers never import
        try:
            yield
        finally:
            main.__spec__ = spec
