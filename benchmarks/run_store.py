"""Runs of a benchmark in one JSON file: each is found again by all that its outcome depends on, also after a kill."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ConfigError

Settings = dict[str, Any]
Outcome = dict[str, Any]


class OutOfTimeError(Exception):
    """A run is missing, and the time for new ones is over."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Wall-clock time in which runs may begin; one that has begun is finished."""

    minutes: float
    started: float

    @classmethod
    def of(cls, minutes: float) -> Budget:
        """Return a budget that begins now; 0 minutes allow no run."""
        return cls(minutes, time.monotonic())

    def require(self) -> None:
        """Raise ``OutOfTimeError`` if no run may begin any more."""
        if time.monotonic() - self.started >= 60 * self.minutes:
            raise OutOfTimeError


class RunStore:
    """The runs of a JSON file ``{"runs": [{"settings", "outcome", "facts"}, ...]}``.

    Args:
        path: The file; it is made with the first run.
        facts: What the figures depend on beside the settings (machine, versions); kept with every new run.

    Raises:
        ConfigError: If the file is not of that form.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self._path, self._facts = path, facts
        self._runs: dict[str, dict[str, Any]] = {}
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))["runs"]
                self._runs = {_key(run["settings"]): run for run in found}
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{path} does not hold runs ({error!r}); name another file") from error

    def find(self, settings: Settings) -> Outcome | None:
        """Return the outcome of the run with exactly these settings, if it is there."""
        run = self._runs.get(_key(settings))
        return None if run is None else run["outcome"]

    def get(self, settings: Settings, work: Callable[[], Outcome], budget: Budget) -> Outcome:
        """Return the outcome from the file; or of ``work()``, which is in the file afterwards.

        Raises:
            OutOfTimeError: If it is not in the file and ``budget`` is spent.
        """
        known = self.find(settings)
        if known is None:
            budget.require()
            known = work()
            self._runs[_key(settings)] = {"settings": settings, "outcome": known, "facts": self._facts}
            write_atomic(self._path, json.dumps({"runs": list(self._runs.values())}, indent=1) + "\n")
        return known


@contextmanager
def open_runs(path: Path, facts: dict[str, Any]) -> Iterator[RunStore]:
    """Open the runs of ``path``, which no second process can open to add to them until this one closes it or ends.

    Raises:
        ConfigError: If another process has it open.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f".{path.name}.lock")
    with lock.open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{path} is in use by another process; wait for its end, or name another file") from None
        yield RunStore(path, facts)


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)
