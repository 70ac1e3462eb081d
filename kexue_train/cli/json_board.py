"""What a program reads while a run works: the stages as records of a log, see ``foundation/json_logs.py``."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from kexue_train.foundation.json_logs import PROGRESS, enter_stage, level_of

_INTERVAL_SECONDS = 10.0


class JsonBoard:
    """A record when a stage starts and ends, one for each note, and one every ten seconds in between."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._said = clock, 0.0

    def start(self, stage: str) -> None:
        """Log that the stage begins."""
        self._said = self._clock()
        enter_stage(stage)
        _log("started")

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Log how far the stage is if ten seconds have passed since the last time."""
        if self._clock() - self._said >= _INTERVAL_SECONDS:
            self._said = self._clock()
            _log("progress", done=done, total=total, unit=unit, **facts)

    def note(self, message: str) -> None:
        """Log the message."""
        _log(message)

    def finish(self, stage: str, summary: str, seconds: float, *, made: bool) -> None:
        """Log what the stage made."""
        enter_stage(stage)
        _log(summary, seconds=round(seconds, 3), made=made)
        enter_stage(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is nothing to put away."""


def _log(message: str, **fields: Any) -> None:
    PROGRESS.log(level_of(message), "%s", message, extra={"fields": fields})
