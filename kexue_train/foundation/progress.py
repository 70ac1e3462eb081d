"""How a stage says how far it is. A stage knows only ``Progress``; who runs it decides where that goes."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives what a stage reports; implementations decide how often to show it."""

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Report ``done`` of ``total`` (None: unknown) in ``unit`` ("rows", "bytes"...), and ``facts`` to show."""
        ...

    def note(self, message: str) -> None:
        """Report one line that stays, such as why work is done again or resumed."""
        ...


class Silent:
    """A ``Progress`` that shows nothing."""

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""


SILENT: Progress = Silent()
