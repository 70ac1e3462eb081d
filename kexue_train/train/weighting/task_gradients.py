"""What is known of the gradients of the tasks: a running sketch of each, and from it their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.train.weighting.running_means import RunningMeans
from kexue_train.train.weighting.sketch import SKETCH_SIZE, add_sketch_


class TaskGradients:
    """Watches an optimizer fold the gradients of the tensors that the tasks share.

    Heads do not count: a head has a gradient of its own task only, which its task's share never turns round.

    Args:
        tasks: How many.
        smoothing: See ``RunningMeans``; the sketch of a running mean of gradients is the running mean of sketches.
        seed: The run's.
        optimizer: Its ``gradient_observer`` is taken.
        shared: The parameters that all tasks train, in an order that does not depend on the tasks.

    Attributes:
        gram: ⟨g_i, g_j⟩ of the running means, fp64 [tasks, tasks] on the CPU.
        known: Whether a task has had a gradient, by task.

    Raises:
        ValueError: If the optimizer does not fold the gradient of each micro-batch, or a parameter is not its own.
    """

    def __init__(
        self, tasks: int, *, smoothing: float, seed: int, optimizer: HiddenAccumulation, shared: Iterable[Tensor]
    ) -> None:
        if optimizer.options.accumulate != "momentum":
            raise ValueError(
                "this weighting watches the gradient of each micro-batch, which needs gradients that are folded into "
                "the momentum: set optimizer.accumulate=momentum, or take weighting.scheme=online, which needs only "
                "the losses"
            )
        numbers = {id(param): number for number, param in enumerate(shared)}
        self._number = {t.index: numbers[id(t.param)] for t in optimizer.tensors if id(t.param) in numbers}
        if len(self._number) < len(numbers) or not numbers:
            raise ValueError(f"the optimizer has {len(self._number)} of the {len(numbers)} parameters that tasks share")
        device = optimizer.tensors[0].param.device
        self._seed = seed
        self._means = RunningMeans(tasks, SKETCH_SIZE, smoothing=smoothing, dtype=torch.float32, device=device)
        self._open = torch.zeros(SKETCH_SIZE, device=device)
        self._task: int | None = None
        self._weight = 1.0
        self._read()
        optimizer.gradient_observer = self._observe

    def begin_micro_batch(self, task: int, weight: float) -> None:
        """Take what comes for the gradient of ``task`` times ``weight``, which is above 0."""
        self._close()
        self._task, self._weight = task, weight

    def end_step(self) -> None:
        """Move the running means and compute the Gram matrix. A collective call; waits for the device once."""
        self._close()
        self._means.end_step()
        self._read()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in what JSON keeps exactly; call it between micro-batches."""
        self._close()
        return self._means.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a ``state_dict``.

        Raises:
            ValueError: If it is of another number of tasks.
        """
        self._task = None
        self._open.zero_()
        self._means.load_state_dict(state)
        self._read()

    def _observe(self, index: int, gradient: Tensor) -> None:
        if self._task is not None and index in self._number:
            add_sketch_(self._open, gradient, seed=self._seed, tensor=self._number[index])

    def _close(self) -> None:
        if self._task is not None:
            self._means.add(self._task, self._open, factor=1 / self._weight)
            self._open.zero_()
            self._task = None

    def _read(self) -> None:
        sketches = self._means.values.double()
        # With the flags in the last column, since each copy to the host would wait.
        found = torch.cat([sketches @ sketches.T, self._means.known.double()[:, None]], 1).cpu()
        self.gram, self.known = found[:, :-1], [bool(flag) for flag in found[:, -1]]
