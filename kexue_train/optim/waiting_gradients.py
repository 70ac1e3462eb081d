"""Gradients that wait to be folded several at a time, no longer than to the end of backward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from kexue_train.optim.random_bits import Rounding

MOST_BYTES = 32 * 2**20
"""Gradients wait only as long as they are smaller together. A gradient of this size takes a GPU longer than a launch
takes the host."""


class FoldSettings(NamedTuple):
    """What gradients that are folded together have in common."""

    decay: float
    """Of the momentum: 1, or β for the first gradient of a step."""
    weight: float
    """Of the gradient."""
    rounding: Rounding
    """For bf16 momenta."""


class WaitingGradients:
    """Gradients of different tensors, all of one type and with the same settings.

    Args:
        fold: Folds gradients, by index of their tensor.
        most: How many it takes at once.
    """

    def __init__(self, fold: Callable[[Mapping[int, Tensor], FoldSettings], None], *, most: int) -> None:
        self._fold, self._most = fold, most
        self._settings: FoldSettings | None = None
        self._gradients: dict[int, Tensor] = {}
        self._backward = -1

    def add(self, index: int, grad: Tensor, settings: FoldSettings) -> None:
        """Let the gradient of the ``index``-th tensor wait, and fold those that cannot wait longer.

        Whoever adds it must not write to it any more. It is folded on the stream that is current at the end of
        backward, which is the one that called it, so both should be called on one stream.
        """
        if self._gradients and not self._goes_with_others(index, grad, settings):
            self.fold()
        self._gradients[index], self._settings = grad, settings
        if len(self._gradients) == self._most or self._bytes >= MOST_BYTES:
            self.fold()
        else:
            self._fold_after_backward()

    def fold(self) -> None:
        """Fold all of them, and free them."""
        gradients, self._gradients = self._gradients, {}
        if gradients and self._settings is not None:
            self._fold(gradients, self._settings)

    @property
    def _bytes(self) -> int:
        return sum(grad.numel() * grad.element_size() for grad in self._gradients.values())

    def _goes_with_others(self, index: int, grad: Tensor, settings: FoldSettings) -> bool:
        kind = next(iter(self._gradients.values())).dtype
        return index not in self._gradients and grad.dtype == kind and settings == self._settings

    def _fold_after_backward(self) -> None:
        backward = torch._C._current_graph_task_id()
        if backward not in (-1, self._backward):  # -1: there is none, and whoever has the gradient ends the micro-batch
            self._backward = backward
            torch.autograd.Variable._execution_engine.queue_callback(self.fold)
