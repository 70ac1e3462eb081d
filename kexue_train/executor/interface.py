"""What a stage knows of the place where its tasks run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from kexue_train.foundation.errors import MachineLostError

Item = TypeVar("Item")
Result = TypeVar("Result")

LOCAL_MACHINE = "local"
"""The name of this machine where no cluster gives it another."""
ATTEMPTS = 3
"""How often a task is tried whose worker process is lost."""


@dataclass(frozen=True)
class Fetch:
    """Something that lies on one machine and is wanted where a task runs: ``function(argument)``, computed there.

    ``function`` must be importable. On Ray the result travels through the object store: a NumPy array or an Arrow
    buffer is read from there without a copy, ``bytes`` are copied once.
    """

    machine: str
    function: Callable[[Any], Any]
    argument: Any


class Executor(Protocol):
    """Maps a function over items; the results come as they finish."""

    @property
    def num_workers(self) -> int:
        """How many tasks run at once, all machines together."""
        ...

    @property
    def workers_per_machine(self) -> int:
        """How many tasks run at once on the largest machine."""
        ...

    def machines(self) -> list[str]:
        """Return the names of the machines that are alive and run tasks, sorted; the same in a restarted driver."""
        ...

    def map_unordered(
        self,
        function: Callable[..., Result],
        items: Sequence[Item],
        *,
        at_once: int | None = None,
        task_memory_bytes: int | None = None,
        fetch: Callable[[Item], Sequence[Fetch]] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Yield (index of the item, result) as tasks finish; at most two tasks per worker are in flight.

        An exception of ``function`` (or of a fetch) keeps its class and ends the map. When the map ends early, by an
        exception, Ctrl-C or ``close()``, the tasks that run are killed.

        Args:
            function: Called with the item, and with the list of what was fetched if ``fetch`` is given. It must be
                importable and may be run again after a lost worker, so it must be idempotent.
            items: What to map over.
            at_once: At most so many tasks run on one machine at a time; at most one per CPU in any case.
            task_memory_bytes: What one task needs; on Ray, no more tasks run on a machine than fit its memory.
            fetch: What the task of an item needs from which machine. Called here, just before the task is sent off.

        Raises:
            MachineLostError: A machine that ``fetch`` names is gone.
            ResourceError: A task lost its worker process again and again.
        """
        ...


def check_at_once(at_once: int | None) -> None:
    """Refuse a limit that lets no task run."""
    if at_once is not None and at_once < 1:
        raise ValueError(f"at_once={at_once}: at least one task must run at a time")


def require_alive(wanted: Iterable[Fetch], alive: Iterable[str]) -> None:
    """Raise ``MachineLostError`` if something is wanted from a machine that is not alive."""
    if lost := {fetch.machine for fetch in wanted} - set(alive):
        raise machine_lost(lost)


def machine_lost(machines: Iterable[str]) -> MachineLostError:
    """Return the error that names the machines."""
    lost = sorted(machines)
    nodes, them = ("nodes", "them") if len(lost) > 1 else ("node", "it")
    return MachineLostError(
        f"{nodes} {', '.join(lost)} lost together with the finished work on {them}; run the same command again: only "
        "the lost work is repeated",
        frozenset(lost),
    )
