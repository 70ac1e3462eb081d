"""What the ranks do together: reductions of small vectors, and averages of flat states while backward still runs."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

_HOST_GROUPS: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()
BUCKET_BYTES = 25 * 2**20
"""Large enough for full bandwidth, small enough that the first bucket leaves early."""


def ranks() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks_(values: Tensor) -> Tensor:
    """Add ``values`` up over the ranks, in place, and return them."""
    if ranks() > 1:
        dist.all_reduce(values)
    return values


def max_over_ranks_(values: Tensor) -> Tensor:
    """Replace ``values`` by their maxima over the ranks, in place, and return them."""
    if ranks() > 1:
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values


def any_over_ranks(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Return which flags are up on any rank; the host waits for those of the other ranks, and for no device.

    Args:
        flags: As many on every rank.
        device: That tensors are reduced on. Flags are, too, and the host waits for it, if torch has no gloo.
    """
    if ranks() == 1:
        return list(flags)
    group = _host_group(device)
    votes = torch.tensor(flags, dtype=torch.uint8, device="cpu" if group else device)
    dist.all_reduce(votes, dist.ReduceOp.MAX, group=group)
    return [bool(vote) for vote in votes.tolist()]


def _host_group(device: torch.device) -> dist.ProcessGroup | None:
    """Return the group in which hosts talk to each other: all ranks, by gloo; made by the first call, on all ranks."""
    world = dist.group.WORLD
    if world is None or dist.get_backend() == "gloo" or "cpu:" in dist.get_backend():
        return world
    if not dist.is_gloo_available():
        return None
    if world not in _HOST_GROUPS:  # as patient as the group of the devices
        patience = world._get_backend(device).options._timeout
        _HOST_GROUPS[world] = dist.new_group(backend="gloo", timeout=patience)
    return _HOST_GROUPS[world]


class RankAverage:
    """The mean over the ranks of one flat tensor, in place, bucket by bucket.

    Buckets leave strictly in order, so every rank starts the same reductions in the same order, whichever gradients
    come first and whichever tensors get none.

    Attributes:
        is_eager: Whether buckets leave as soon as they are complete. A bucket that has left takes no gradients any
            more.

    Args:
        flat: The tensor, [n].
        ends: Where each tensor of it ends, ascending; gradients should come in about this order.
        bucket_bytes: Least size of a bucket.
    """

    def __init__(self, flat: Tensor, ends: Sequence[int], *, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._flat = flat
        # A bucket is closed by the first tensor with which it is large enough, so tensors are never cut. For tensors
        # that end at 3, 5 and 9 and buckets of at least 4 elements: borders 0, 5, 9 and the tensors' buckets 0, 0, 1.
        self._borders, self._bucket_of = [0], []
        for end in ends:
            self._bucket_of.append(len(self._borders) - 1)
            if (end - self._borders[-1]) * flat.element_size() >= bucket_bytes:
                self._borders.append(end)
        if self._borders[-1] < flat.numel() or not flat.numel():
            self._borders.append(flat.numel())
        last = len(self._borders) - 2  # tensors without elements at the end open no bucket
        self._bucket_of = [min(bucket, last) for bucket in self._bucket_of]
        self.is_eager = False
        self._begin()

    def ready(self, tensor: int) -> bool:
        """Note that the ``tensor``-th tensor is complete on this rank.

        Returns:
            Whether that was not known in this step.
        """
        if self._is_ready[tensor]:
            return False
        self._is_ready[tensor] = True
        self._waiting[self._bucket_of[tensor]] -= 1
        return True

    @property
    def may_leave(self) -> bool:
        """Whether ``send_complete`` would send a bucket, so that all of it has to be written by now."""
        return self.is_eager and self._next < len(self._waiting) and not self._waiting[self._next]

    def send_complete(self) -> None:
        """Send the buckets whose turn it is and whose tensors are all complete."""
        while self.may_leave:
            self._send_next()

    def has_left(self, tensor: int) -> bool:
        """Return whether the bucket of the ``tensor``-th tensor has left, so that nothing may be written there."""
        return self._bucket_of[tensor] < self._next

    def finish(self) -> list[tuple[int, Tensor]]:
        """Send what is left and wait for all.

        Returns:
            (start, mean) of buckets whose mean has more precision than ``flat`` and must be stored by the caller.
        """
        while self._next < len(self._waiting):
            self._send_next()
        wider = []
        for start, bucket, work in self._sent:
            work.wait()
            bucket.div_(ranks())
            if bucket.dtype != self._flat.dtype:
                wider.append((start, bucket))
        self._begin()
        return wider

    def abandon(self) -> None:
        """Wait for what has left, and begin again."""
        for _, _, work in self._sent:
            work.wait()
        self._begin()

    def _send_next(self) -> None:
        start, end = self._borders[self._next], self._borders[self._next + 1]
        bucket = self._flat[start:end]
        if bucket.dtype == torch.bfloat16:  # a sum in bf16 would lose what stochastic rounding keeps
            bucket = bucket.float()
        self._sent.append((start, bucket, dist.all_reduce(bucket, async_op=True)))
        self._next += 1

    def _begin(self) -> None:
        self._next = 0
        self._sent: list[tuple[int, Tensor, dist.Work]] = []
        self._is_ready = [False] * len(self._bucket_of)
        self._waiting = [self._bucket_of.count(bucket) for bucket in range(len(self._borders) - 1)]
