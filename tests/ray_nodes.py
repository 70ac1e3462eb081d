"""Starts nodes of Ray's test cluster on a machine that may be busy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Started = TypeVar("Started")
_TRIES = 4
_TOO_SLOW = "timed out during startup"


def try_again(start: Callable[[], Started]) -> Started:
    """Return what ``start`` returns, called again when a node needs more than the 30 s that Ray has fixed for it."""
    for _ in range(_TRIES - 1):
        try:
            return start()
        except Exception as error:  # Ray raises a bare one
            if _TOO_SLOW not in str(error):
                raise
    return start()
