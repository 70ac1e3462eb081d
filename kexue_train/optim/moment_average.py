"""The mean of the moments over the ranks, exact however many gradients a tensor gets in a step.

Buckets of moments leave during the last backward of a step, if in the steps before no tensor got a second gradient in
that micro-batch, on any rank. One that comes after its bucket has left is kept apart and averaged at the end of the
step, which is exact, as moments are linear in gradients; from then on buckets leave at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.optim.param_groups import Tracked
from kexue_train.optim.random_bits import BUCKETS, LATE, Rounding, part_number
from kexue_train.optim.ranks import RankAverage, ranks
from kexue_train.optim.whole_tensors import fold_tensor_


class MomentAverage:
    """Averages the moments of all tensors once per step.

    Args:
        flat: All moments, [n].
        ends: Where those of each tensor end, by ``Tracked.place``.
    """

    def __init__(self, flat: Tensor, ends: Sequence[int]) -> None:
        self._flat, self._average = flat, RankAverage(flat, ends)
        self._late: dict[int, list[Tensor]] = {}
        self.is_irregular = False
        """Whether a tensor has got two gradients in the last micro-batch of a step."""

    def takes(self, tensor: Tracked) -> bool:
        """Return whether gradients may be folded into the moments of ``tensor`` still."""
        return not self._average.has_left(tensor.place)

    def ready(self, tensor: Tracked) -> None:
        """Note that ``tensor`` has a gradient of the last micro-batch, which should be its only one."""
        self.is_irregular |= not self._average.ready(tensor.place)

    @property
    def may_leave(self) -> bool:
        """Whether ``send_complete`` would send a bucket, so that all its gradients have to be folded by now."""
        return self._average.may_leave

    def send_complete(self) -> None:
        """Send the buckets whose turn it is and whose tensors are all ready."""
        self._average.send_complete()

    def fold_late(self, tensor: Tracked, grad: Tensor, *, share: float, rounding: Rounding) -> Tensor | bool:
        """Keep a gradient whose tensor takes no more; the arguments are those of ``fold_tensor_``."""
        self.is_irregular = True
        parts = self._late[tensor.index] = self._late.get(tensor.index) or _zeros(tensor)
        return fold_tensor_(
            tensor.rule, parts, grad, is_first=False, share=share, rounding=rounding, number=tensor.index
        )

    @property
    def late(self) -> set[int]:
        """Indices of the tensors with a late gradient on this rank."""
        return set(self._late)

    def finish(self, rounding: Rounding) -> None:
        """Average what was folded; a collective call."""
        for start, mean in self._average.finish():
            rounding.store(self._flat[start : start + mean.numel()], mean, number=BUCKETS, offset=start)

    def finish_late(self, tensors: Sequence[Tracked], rounding: Rounding) -> None:
        """Average what came late; a collective call, on all ranks for the same tensors."""
        for tensor in tensors:
            for moment, part in zip(tensor.moments, self._late.get(tensor.index) or _zeros(tensor), strict=True):
                dist.all_reduce(part)
                mean = part.div_(ranks()).add_(moment)
                rounding.store(moment, mean, number=part_number(tensor.index, LATE))
        self._late.clear()

    def close_step(self, *, is_irregular: bool) -> None:
        """Decide, alike on all ranks, when the buckets of the next steps leave."""
        self.is_irregular |= is_irregular
        self._average.is_eager = not self.is_irregular

    def abandon(self) -> None:
        """Forget what has left and what came late."""
        self._average.abandon()
        self._late.clear()


def _zeros(tensor: Tracked) -> list[Tensor]:
    return [torch.zeros_like(m, dtype=torch.promote_types(m.dtype, torch.float32)) for m in tensor.moments]
