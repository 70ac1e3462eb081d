"""Who may ask a training to stop early, and how: a signal, a file in its folder, a machine about to be taken away.

A worker asks itself every step; the ranks agree in their reports (``step_report.py``), save a checkpoint and end.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Any

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
