"""Who may ask a training to stop early, and how: a signal, a file in its folder, a machine about to be taken away.

A worker asks itself every step; the ranks agree in their reports (``step_report.py``), save a checkpoint and end.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from types import FrameType
from typing import Any

from kexue_train.foundation.errors import TrainingError
from kexue_train.foundation.progress import Progress

logger = logging.getLogger(__name__)

STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_POLL_SECONDS = 1.0


class Ending(Enum):
    """How a training ends that does not fail."""

    FINISHED = auto()
    """With the last step."""
    STOPPED = auto()
    """Earlier, since it was asked to; with a checkpoint."""
    DRAINED = auto()
    """Earlier, since a machine is about to be taken away; with a checkpoint."""


def no_machine_is_draining() -> bool:
    """No machine is about to be taken away."""
    return False


class StopRequest:
    """Whether this process was asked to stop.

    Args:
        file: Asks for it when it appears.
        is_draining: Whether the machine is about to be taken away; asked about once a second.
    """

    def __init__(self, file: Path, is_draining: Callable[[], bool] = no_machine_is_draining) -> None:
        self._file, self._is_draining = file, is_draining
        self._asked = self._drained = False
        self._polled = -_POLL_SECONDS

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take SIGTERM and SIGINT for requests meanwhile; only a main thread can."""
        before = {number: signal.signal(number, self._request) for number in STOPPING_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def poll(self) -> tuple[bool, bool]:
        """(asked to stop, machine drained) so far; looks at file and machine about once a second."""
        now = time.monotonic()
        if now - self._polled >= _POLL_SECONDS:
            self._polled = now
            self._asked |= self._file.exists()
            self._drained |= self._is_draining()
        return self._asked, self._drained

    def _request(self, *_: Any) -> None:
        self._asked = True


@contextmanager
def signals_held(file: Path, timeout: float, progress: Progress) -> Iterator[None]:
    """While the workers run, turn SIGTERM and Ctrl-C into the stop file ``file``; afterwards do what they meant.

    So the workers have saved a checkpoint when this process ends. A second signal, or the end of ``timeout`` seconds,
    raises out of the block. In another than the main thread nothing is held.

    Raises:
        TrainingError: In the block, when the workers have to be ended now.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    deadline = threading.Timer(timeout, lambda: os.kill(os.getpid(), received[0]))
    deadline.daemon = True

    def hold(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise TrainingError("the workers were ended before they had saved a checkpoint")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        deadline.start()
        progress.note("stopping: the workers save a checkpoint first; ask again to stop at once")

    before = {number: signal.signal(number, hold) for number in STOPPING_SIGNALS}
    try:
        yield
    finally:
        deadline.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            file.unlink(missing_ok=True)
            _deliver(received[0], before[signal.Signals(received[0])])


def _deliver(number: int, handler: Any) -> None:
    if handler is signal.SIG_DFL:
        raise SystemExit(128 + number)  # as the shell names it, but with all clean-up done
    if callable(handler):
        handler(number, None)
