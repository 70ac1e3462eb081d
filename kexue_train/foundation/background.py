"""Work in a thread, beside a main thread that stays free for signals and for whoever watches."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_POLL_SECONDS = 0.2


def run_in_thread(
    work: Callable[[], _T],
    *,
    on_poll: Callable[[], None],
    request_stop: Callable[[], object],
    stop_seconds: float,
) -> _T:
    """Run ``work`` in a thread and return its result, or raise what it raises.

    Under an orchestrator the handler of SIGTERM belongs to the orchestrator, which takes a process that has another
    one for crashed. So what works here for hours does it in a thread, and the main thread waits with that handler in
    place.

    Args:
        work: What to do.
        on_poll: Called in this thread, several times a second and once more after the end.
        request_stop: Called again and again, once a signal has raised something here, until ``work`` has ended.
        stop_seconds: How long it has for that; then it is left behind, to end with the process.

    Raises:
        BaseException: What ``work`` raised; or what a signal's handler, or ``on_poll``, raised here.
    """
    outcome: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            errors.append(error)
        finally:
            ended.set()

    # Thread.join would do, but in Python 3.11 takes a thread for ended when a signal's handler raises in it.
    ended = threading.Event()
    threading.Thread(target=run, name="work", daemon=True).start()
    try:
        while not ended.wait(_POLL_SECONDS):
            on_poll()
        on_poll()
    except BaseException:
        _end(ended, request_stop, stop_seconds)
        raise
    if errors:
        raise errors[0]
    return outcome[0]


def _end(ended: threading.Event, request_stop: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ended.is_set() and time.monotonic() < deadline:
        request_stop()  # again, since what is just starting may forget a wish from before
        ended.wait(_POLL_SECONDS)
