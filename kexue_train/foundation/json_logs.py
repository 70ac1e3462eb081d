"""Logs for programs: with ``KEXUE_LOG_FORMAT=json`` every line that this process logs is one JSON object.

Keys: ``time`` (UTC), ``level``, ``logger``, ``message``, ``run`` (the run folder), ``stage``, ``rank`` (of a training
worker), ``process``; and, where there is something to say, ``fields`` (values by name) and ``traceback``. Line ends
within a message are escapes. Run and stage are handed on in the environment, so the processes of a run name them too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.shown import printable

VARIABLE = "KEXUE_LOG_FORMAT"
"""The environment variable that chooses the form of the logs: ``text`` (default) or ``json``. Workers inherit it."""
_RUN, _STAGE = "KEXUE_LOG_RUN", "KEXUE_LOG_STAGE"
_FORMATS = ("text", "json")
PROGRESS = logging.getLogger("kexue_train.progress")
"""What stages tell; it goes to standard error at all levels, wherever other loggers of this process write."""
_LEVELS = {"error:": logging.ERROR, "warning:": logging.WARNING}


def wants_json() -> bool:
    """Return whether logs are to be JSON.

    Raises:
        ConfigError: If the variable has a value that is no format.
    """
    value = os.environ.get(VARIABLE) or "text"
    if value not in _FORMATS:
        raise ConfigError(f"the environment variable {VARIABLE} is {value!r}; allowed are text (default) and json")
    return value == "json"


def enter_run(run: Path) -> None:
    """Name the run folder in all further lines of this process and of those that it starts."""
    if wants_json():
        os.environ[_RUN] = str(run)


def enter_stage(stage: str | None) -> None:
    """Name the stage in all further lines of this process and of those that it starts; None: no stage."""
    if wants_json():
        os.environ.pop(_STAGE, None)
        os.environ |= {_STAGE: stage} if stage else {}


def log_context() -> dict[str, str]:
    """Return what a process elsewhere needs in its environment to log as this one does."""
    return {name: os.environ[name] for name in (VARIABLE, _RUN, _STAGE) if name in os.environ}


def level_of(text: str) -> int:
    """Return the level of a message that comes without one: by its first word."""
    return _LEVELS.get(text.partition(" ")[0].lower(), logging.INFO)


class JsonFormatter(logging.Formatter):
    """A formatter that makes one JSON object of a record, without credentials.

    ``extra={"fields": {...}}`` of a logging call becomes the key ``fields``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        rank = os.environ.get("RANK")
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "run": os.environ.get(_RUN),
            "stage": os.environ.get(_STAGE),
            "rank": int(rank) if rank else None,
            "process": record.process,
        }
        if fields := getattr(record, "fields", None):
            entry["fields"] = fields
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return printable(json.dumps(entry, ensure_ascii=False, default=str))


class JsonLines:
    """A text stream that makes a record of every line written to it: of what libraries and Python itself print."""

    def __init__(self, below: Any, handler: logging.Handler) -> None:
        """Begin.

        Args:
            below: The stream for everything else than text.
            handler: What writes the records.
        """
        self._below, self._handler = below, handler
        self._begun = threading.local()  # lines of threads do not mix

    def write(self, text: str) -> int:
        """Log the lines that are complete with ``text``."""
        *lines, self._begun.text = (getattr(self._begun, "text", "") + text).split("\n")
        for line in filter(str.strip, lines):
            self._handler.handle(logging.LogRecord("stderr", level_of(line), "", 0, line.rstrip(), None, None))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._below, name)


@contextmanager
def logs_as_asked() -> Iterator[None]:
    """Let this process log as the environment asks: with ``json``, all of standard error is one object per line.

    Raises:
        ConfigError: See ``wants_json``.
    """
    if not wants_json():
        yield
        return
    root, stream, before = logging.getLogger(), sys.stderr, log_context()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    handlers, root.handlers[:] = root.handlers[:], [handler]
    PROGRESS.handlers[:], PROGRESS.propagate = [handler], False
    PROGRESS.setLevel(logging.INFO)
    sys.stderr = lines = JsonLines(stream, handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        lines.write("\n")  # ends a line that was begun
        logging.captureWarnings(False)
        root.handlers[:], sys.stderr = handlers, stream
        PROGRESS.handlers[:], PROGRESS.propagate = [], True
        PROGRESS.setLevel(logging.NOTSET)
        for name in log_context().keys() - before.keys():
            del os.environ[name]
        os.environ |= before
