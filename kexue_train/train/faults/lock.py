"""One training in a folder at a time: workers of a killed run may live on for moments beside their successors."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kexue_train.foundation.errors import ResourceError

logger = logging.getLogger(__name__)

_SECONDS_TO_WAIT = 60.0


@contextmanager
def held_alone(file: Path) -> Iterator[None]:
    """Hold the lock ``file``, which ends with this process, however it ends; waits a minute for another to end.

    Raises:
        ResourceError: If another process still holds it then.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, file)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, file: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_WAIT
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"{file}: another training is at work in this folder; wait for it, stop it, or take another folder"
                ) from None
            time.sleep(0.2)
        except OSError as error:  # some network file systems have no locks
            return logger.warning("%s cannot be locked (%s)", file, error.strerror)
