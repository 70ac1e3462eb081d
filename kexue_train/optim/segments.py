"""Rules for whole tensors and rows, on flat tensors that hold slices of them.

ZeRO gives each rank flat tensors with slices of many tensors, cut wherever its share ends: within a tensor, within a
row too. A segment says which slice lies where. What a rule needs of a whole tensor or row is a sum over its elements:
each rank adds up its own slices into the vector of a ``ScalarLayout``, and one small all-reduce makes the whole sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kexue_train.optim.layout import ScalarLayout
from kexue_train.optim.param_groups import Role


@dataclass(frozen=True)
class Segment:
    """A slice of one tensor, and where it lies."""

    tensor: int
    """Which tensor, in the order of the layout."""
    start: int
    """Its first element, in the tensor's own order."""
    numel: int
    """At least 1."""
    flat: int
    """Which of this rank's flat tensors it lies in."""
    offset: int
    """Its first element there."""

    def of(self, flats: Sequence[Tensor]) -> Tensor:
        """The slice, a view [numel]."""
        return flats[self.flat][self.offset : self.offset + self.numel]

    def within(self, whole: Tensor) -> Tensor:
        """The same place in the whole tensor, which is contiguous, a view [numel]."""
        return whole.view(-1)[self.start : self.start + self.numel]


@dataclass(frozen=True)
class Block:
    """Part of a segment: one piece of a tensor or row, or several whole rows; each of its lines has one scalar."""

    skip: int
    """Elements of the segment before it."""
    lines: slice
    """Its scalars in a vector of the layout."""
    width: int
    """Elements of a line."""

    def of(self, segment: Tensor) -> Tensor:
        """The block of something kept for the segment, [numel] -> view [lines, width]."""
        count = self.lines.stop - self.lines.start
        return segment[self.skip : self.skip + count * self.width].view(count, self.width)


@dataclass(frozen=True)
class SegmentMap:
    """All segments of one rank.

    Args:
        layout: Of the whole tensors, the same on every rank.
        segments: Those of this rank. All ranks together have every element of every tensor once.
    """

    layout: ScalarLayout
    segments: Sequence[Segment]

    @cached_property
    def blocks(self) -> list[list[Block]]:
        """Of each segment; those of embeddings are cut where rows begin and end, so there are at most three."""
        first_scalar = [0]
        for count in self.layout.counts:
            first_scalar.append(first_scalar[-1] + count)
        return [list(self._cut(segment, first_scalar[segment.tensor])) for segment in self.segments]

    def sum_squares(self, slices: Sequence[Tensor]) -> Tensor:
        """This rank's share of the sums of squares of the whole tensors, to be added up over the ranks.

        Args:
            slices: One for each segment, [numel].

        Returns:
            [layout.total] of at least fp32, 0 for vectors, whose size no rule asks for.
        """
        dtype = torch.promote_types(slices[0].dtype if slices else torch.float32, torch.float32)
        sums = torch.zeros(self.layout.total, dtype=dtype, device=self.layout.device)
        for segment, blocks, kept in zip(self.segments, self.blocks, slices, strict=True):
            if self.layout.roles[segment.tensor] is not Role.VECTOR:
                for block in blocks:
                    sums[block.lines] += torch.linalg.vector_norm(block.of(kept), dim=-1, dtype=dtype).square_()
        return sums

    def add_up(self, values: Sequence[Tensor]) -> Tensor:
        """This rank's share of a sum over each whole tensor, to be added up over the ranks, [tensors].

        Args:
            values: A scalar for each segment.
        """
        dtype = values[0].dtype if values else torch.float32
        sums = torch.zeros(len(self.layout.shapes), dtype=dtype, device=self.layout.device)
        return sums.index_add_(0, self._tensors, torch.stack(list(values))) if values else sums

    @cached_property
    def _tensors(self) -> Tensor:
        return torch.tensor([segment.tensor for segment in self.segments], device=self.layout.device)

    def _cut(self, segment: Segment, first_scalar: int) -> Iterator[Block]:
        if self.layout.roles[segment.tensor] is not Role.EMBEDDING:
            yield Block(0, slice(first_scalar, first_scalar + 1), segment.numel)
            return
        width = self.layout.shapes[segment.tensor][-1]
        skip = 0
        while skip < segment.numel:
            row, inside = divmod(segment.start + skip, width)
            left = segment.numel - skip
            rows = 0 if inside else left // width  # whole ones from here
            scalar = first_scalar + row
            yield Block(skip, slice(scalar, scalar + max(rows, 1)), width if rows else min(width - inside, left))
            skip += rows * width or min(width - inside, left)
