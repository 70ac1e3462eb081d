"""What training asks of an optimizer, whoever wrote it: windows of micro-batches, states by name, bad gradients."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from kexue_train.optim.nonfinite import NonfiniteReport


class WindowedOptimizer(Protocol):
    """An optimizer whose ``step`` is called after every micro-batch."""

    param_groups: list[dict[str, Any]]
    accumulation_steps: int
    steps: int
    """Windows done."""
    filled: int
    """Micro-batches done of the open window."""

    def step(self) -> bool:
        """End one micro-batch; returns whether the parameters moved."""
        ...

    def saw_tokens(self, *ids: Tensor) -> None:
        """Note the tokens of the micro-batch, for lazy rows."""
        ...

    def nonfinite_report(self) -> NonfiniteReport:
        """Bad gradients since the last report."""
        ...

    def named_moments(self) -> dict[str, Tensor]:
        """States by ``<kind>.<parameter>``; may be written to."""
        ...

    def restart_at(self, steps: int) -> None:
        """Open a new window after ``steps`` of them."""
        ...
