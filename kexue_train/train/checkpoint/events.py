"""What the threads that save and mirror have to say; the training thread writes it into the metrics."""

from __future__ import annotations

import logging
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from kexue_train.metrics.fields import Kind

logger = logging.getLogger(__name__)


class Event(NamedTuple):
    """One line of metrics."""

    kind: Kind
    step: int
    values: dict[str, Any]


class Events:
    """Events on their way from any thread to the training thread."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Event] = SimpleQueue()

    def add(self, kind: Kind, step: int, **values: Any) -> None:
        """Say it in the log at once and hand it over."""
        level = logging.WARNING if kind in (Kind.CHECKPOINT_FAILED, Kind.MIRROR_FAILED) else logging.INFO
        logger.log(
            level, "%s at step %d: %s", kind, step, ", ".join(f"{name} {value}" for name, value in values.items())
        )
        self._queue.put(Event(kind, step, values))

    def take(self) -> list[Event]:
        """All that were added since the last call."""
        taken = []
        while True:
            try:
                taken.append(self._queue.get_nowait())
            except Empty:
                return taken
