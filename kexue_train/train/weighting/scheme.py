"""What the supervised stage asks of a weighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

LEAST_WEIGHT = 2.0**-20
"""In place of 0, so that the gradient of a task that does not count can still be watched. A power of two: multiplying
by it and dividing again loses no bit."""


class TaskWeights(Protocol):
    """One number for each micro-batch, which multiplies its loss. All methods are called on all ranks alike.

    In every step: ``begin_step`` once, ``weight`` before the backward of each micro-batch, ``end_step`` after the last.
    """

    def begin_step(self, micro_batches: Mapping[str, int]) -> None:
        """Decide what the tasks of the next step count.

        Args:
            micro_batches: How many micro-batches of each task the step has over all ranks; tasks that it has not may be
                left out.

        Raises:
            KeyError: If a task is unknown.
        """
        ...

    def weight(self, task: str, loss: Tensor) -> Tensor | float:
        """Return what to multiply ``loss`` by.

        Args:
            task: Which task the micro-batch is of.
            loss: Its mean loss, unweighted, 0-dim; its value counts, no gradient goes through it.

        Returns:
            Above 0 if the loss is. A 0-dim tensor on the loss's device if it depends on that device's results, so that
            the host waits for nothing; else a number.
        """
        ...

    def end_step(self) -> None:
        """Add up what the step has shown over the ranks; a collective call."""
        ...

    def weights(self) -> dict[str, float]:
        """Return what a micro-batch of each task would count now, for a line of metrics; waits for the device.

        Only the tasks of which that can be told.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state in what JSON keeps exactly; waits for the device.

        At the end of a step it is the same on all ranks; within a step, between two micro-batches, it is this rank's
        own.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a ``state_dict`` of the same scheme and tasks.

        Raises:
            ValueError: If it is of others.
        """
        ...


def number_tasks(tasks: Sequence[str]) -> dict[str, int]:
    """Return the place of each task.

    Raises:
        ValueError: If there are none, or one is there twice.
    """
    numbers = {task: number for number, task in enumerate(tasks)}
    if not tasks or len(numbers) < len(tasks):
        raise ValueError(f"tasks need names of their own, at least one, got {list(tasks)}")
    return numbers


def check_state(state: Mapping[str, Any], *, scheme: str, tasks: Sequence[str]) -> None:
    """Refuse the state of another scheme or of other tasks.

    Raises:
        ValueError: With both.
    """
    found = state.get("scheme"), list(state.get("tasks", ()))
    if found != (scheme, list(tasks)):
        raise ValueError(
            f"the saved weighting is {found[0]} of the tasks {', '.join(found[1])}; this run has {scheme} of "
            f"{', '.join(tasks)}: go on with the scheme and tasks that the run began with, or start a new run"
        )
