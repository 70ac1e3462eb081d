"""What one stage will take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """None: not known beforehand, or never measured."""

    stage: str
    tasks: int = 1
    """Pieces of work that are done, and after a kill done again, one by one; of training its workers."""
    disk_bytes: int = 0
    """What it leaves."""
    scratch_bytes: int = 0
    """What it needs beside that, at its peak."""
    memory_bytes: int | None = None
    """Of all its processes on one machine."""
    device_bytes: int | None = None
    """Of the memory of each GPU."""
    seconds: float | None = None
    basis: str = ""
    """Where the figures come from."""
