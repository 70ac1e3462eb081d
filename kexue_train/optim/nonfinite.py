"""What happens to a tensor in whose step a gradient was NaN or infinite; the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kexue_train.foundation.errors import TrainingError
from kexue_train.optim.ranks import max_over_ranks_

OnNonfinite = Literal["shrink", "skip", "raise"]


class NonfiniteReport(NamedTuple):
    """Bad gradients since the last report."""

    steps: dict[str, int]
    """Steps with a bad gradient, by name of the tensor."""
    in_a_row: int
    """Longest run of steps with a bad gradient in any tensor."""


class NonfiniteGuard:
    """Flags of the tensors of one step, and counts over steps; on the device, so that nobody waits for it.

    Args:
        names: Name of each tensor.
        policy: "shrink": the tensor is multiplied by ``shrink`` in place of its step, at most once per step; "skip":
            it stays; "raise": training ends.
        shrink: In (0, 1].
        device: Where gradients are.
    """

    def __init__(self, names: Sequence[str], policy: OnNonfinite, shrink: float, device: torch.device) -> None:
        self.names, self.policy = names, policy
        self.shrink = shrink if policy == "shrink" else 1.0
        """What is left of a bad tensor."""
        self.flags = torch.zeros(len(names), device=device)
        """1 for a tensor with a bad gradient in this step."""
        self._steps = torch.zeros(len(names), device=device)
        self._run, self._longest = torch.zeros((), device=device), torch.zeros((), device=device)

    def add(self, names: Sequence[str]) -> None:
        """Guard further tensors from now on."""
        self.names = [*self.names, *names]
        more = self.flags.new_zeros(len(names))
        self.flags, self._steps = torch.cat([self.flags, more]), torch.cat([self._steps, more])

    def mark(self, tensors: int | slice, bad: Tensor | bool) -> None:
        """Note whether a gradient of the tensors with this index, or these, was bad."""
        if isinstance(bad, Tensor):
            self.flags[tensors].logical_or_(bad)
        elif bad:
            self.flags[tensors] = 1.0

    def close_step(self) -> Tensor:
        """Agree over the ranks, count, and forget.

        Returns:
            Which tensors were bad, bool [tensors].

        Raises:
            TrainingError: Under "raise", naming the tensors.
        """
        max_over_ranks_(self.flags)
        self._steps += self.flags
        self._run.add_(1).mul_(self.flags.any())
        torch.maximum(self._longest, self._run, out=self._longest)
        bad = self.flags > 0
        self.flags.zero_()
        if self.policy == "raise" and bool(bad.any()):
            named = ", ".join(name for name, flag in zip(self.names, bad.tolist(), strict=True) if flag)
            raise TrainingError(
                f"the gradient of {named} was NaN or infinite; lower optimizer.lr, or set optimizer.on_nonfinite to "
                "'shrink' or 'skip' to go on"
            )
        return bad

    def report(self) -> NonfiniteReport:
        """Return the counts since the last report; waits for the device."""
        *steps, longest = torch.cat([self._steps, self._longest[None]]).tolist()
        self._steps.zero_()
        self._longest.zero_()
        counted = {name: int(count) for name, count in zip(self.names, steps, strict=True) if count}
        return NonfiniteReport(counted, int(longest))
