"""Parameters and moments of which each rank keeps and moves only its slices (ZeRO 1, 2 and 3).

ZeRO gives each rank flat tensors with slices of many tensors, cut wherever its share ends: within a tensor, within a
row too. DeepSpeed reduces gradients to slices and publishes moved ones. What a rule needs of a whole tensor or row is a
sum over its elements: each rank adds up its own slices into the vector of a ``ScalarLayout``, and one small all-reduce
makes the whole sums. Gradients are folded after every micro-batch, since the moments lie cut up like them: k
micro-batches take k reductions, where whole moments take one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.gradients import clip_factor, drop_gradient_
from kexue_train.optim.param_groups import Role, Tracked
from kexue_train.optim.participation import agree_on_participation
from kexue_train.optim.random_bits import Rounding
from kexue_train.optim.ranks import ranks, sum_over_ranks_
from kexue_train.optim.step_sizes import ScalarLayout, StepSizes
from kexue_train.optim.whole_tensors import fold_tensor_, move_tensor_


@dataclass(frozen=True)
class TensorSlice:
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
        """Return the slice, a view [numel]."""
        return flats[self.flat][self.offset : self.offset + self.numel]

    def within(self, whole: Tensor) -> Tensor:
        """Return the same place in the whole tensor, which is contiguous, a view [numel]."""
        return whole.view(-1)[self.start : self.start + self.numel]


@dataclass(frozen=True)
class Block:
    """Part of a slice: one piece of a tensor or row, or several whole rows; each of its lines has one scalar."""

    skip: int
    """Elements of the slice before it."""
    lines: slice
    """Its scalars in a vector of the layout."""
    width: int
    """Elements of a line."""

    def of(self, kept: Tensor) -> Tensor:
        """Return the block of something kept for the slice, [numel] -> view [lines, width]."""
        count = self.lines.stop - self.lines.start
        return kept[self.skip : self.skip + count * self.width].view(count, self.width)


@dataclass(frozen=True)
class SliceMap:
    """All slices of one rank.

    Args:
        layout: Layout of the whole tensors, the same on every rank.
        slices: The slices of this rank. All ranks together have every element of every tensor once.
    """

    layout: ScalarLayout
    slices: Sequence[TensorSlice]

    @cached_property
    def blocks(self) -> list[list[Block]]:
        """Blocks of each slice; those of embeddings are cut where rows begin and end, so there are at most three."""
        first_scalar = list(accumulate(self.layout.counts, initial=0))
        return [list(self._cut(own, first_scalar[own.tensor])) for own in self.slices]

    def sum_powers(self, kept: Sequence[Tensor], power: int = 2) -> Tensor:
        """Return this rank's share of the sums of powers of the whole tensors, to be added up over the ranks.

        Args:
            kept: The parameters, [numel] for each slice.
            power: 2 for squares, 1 for absolute values.

        Returns:
            [layout.total] of at least fp32, 0 for vectors, whose size no rule asks for.
        """
        dtype = torch.promote_types(kept[0].dtype if kept else torch.float32, torch.float32)
        sums = torch.zeros(self.layout.total, dtype=dtype, device=self.layout.device)
        for own, blocks, values in zip(self.slices, self.blocks, kept, strict=True):
            if self.layout.roles[own.tensor] is not Role.VECTOR:
                for block in blocks:
                    norms = torch.linalg.vector_norm(block.of(values), power, dim=-1, dtype=dtype)
                    sums[block.lines] += norms.square_() if power == 2 else norms
        return sums

    def add_up(self, values: Sequence[Tensor]) -> Tensor:
        """Return this rank's share of a sum over each whole tensor, to be added up over the ranks, [tensors].

        Args:
            values: A scalar for each slice.
        """
        dtype = values[0].dtype if values else torch.float32
        sums = torch.zeros(len(self.layout.shapes), dtype=dtype, device=self.layout.device)
        return sums.index_add_(0, self._tensors, torch.stack(list(values))) if values else sums

    @cached_property
    def _tensors(self) -> Tensor:
        return torch.tensor([own.tensor for own in self.slices], device=self.layout.device)

    def _cut(self, own: TensorSlice, first_scalar: int) -> Iterator[Block]:
        if self.layout.roles[own.tensor] is not Role.EMBEDDING:
            yield Block(0, slice(first_scalar, first_scalar + 1), own.numel)
            return
        # A table [5, 4] from element 2 on, 15 elements: the rest of row 0 (2 elements), the whole rows 1 to 3 as one
        # block [3, 4], and the first element of row 4. Their scalars are those of row 0, of rows 1 to 3, and of row 4.
        width = self.layout.shapes[own.tensor][-1]
        skip = 0
        while skip < own.numel:
            row, inside = divmod(own.start + skip, width)
            left = own.numel - skip
            whole_rows = 0 if inside else left // width
            scalar = first_scalar + row
            line = width if whole_rows else min(width - inside, left)
            yield Block(skip, slice(scalar, scalar + max(whole_rows, 1)), line)
            skip += max(whole_rows, 1) * line


class TensorSlices:
    """A ``TensorStorage`` of this rank's slices; what is folded by index is a slice.

    Args:
        tensors: Parameters with whole moments, which are copied.
        flats: Tensors that hold this rank's slices of the parameters.
        slice_map: Where each lies; tensors are counted in the order of ``tensors``.
    """

    def __init__(self, tensors: Sequence[Tracked], flats: Sequence[Tensor], slice_map: SliceMap) -> None:
        self._tensors, self._flats, self.map = tensors, flats, slice_map
        self._moments = [
            [own.within(moment).clone() for moment in tensors[own.tensor].moments] for own in slice_map.slices
        ]

    def fold(self, index: int, grad: Tensor, *, is_first: bool, share: float, rounding: Rounding) -> Tensor | bool:
        """Take a gradient into the moments of the ``index``-th slice; see ``fold_tensor_``."""
        number = self.map.slices[index].tensor
        return fold_tensor_(
            self._tensors[number].rule, self._moments[index], grad,
            is_first=is_first, share=share, rounding=rounding, number=number,
        )  # fmt: skip

    def flush(self) -> None:
        """Do nothing: gradients are folded at once."""

    def sum_squares(self) -> Tensor:
        """Return the sums of squares of the whole parameters, [total] of the layout; a collective call."""
        return sum_over_ranks_(self.map.sum_powers([own.of(self._flats) for own in self.map.slices]))

    def sum_absolutes(self) -> Tensor:
        """Return the sums of absolute values of matrices and rows, [total] of the layout; a collective call."""
        return sum_over_ranks_(self.map.sum_powers([own.of(self._flats) for own in self.map.slices], 1))

    def move(self, sizes: StepSizes, *, step: int, rounding: Rounding, flat: Tensor | None = None) -> None:
        """Move the slices that lie in ``flat``, one of the flat tensors, or all of them."""
        for own, blocks, moments in zip(self.map.slices, self.map.blocks, self._moments, strict=True):
            if self._tensors[own.tensor].rests or (flat is not None and self._flats[own.flat] is not flat):
                continue
            for block in blocks:
                move_tensor_(
                    self._tensors[own.tensor].rule, block.of(own.of(self._flats)),
                    [block.of(moment) for moment in moments],
                    sizes.lines(block.lines),
                    step=step, rounding=rounding, number=own.tensor,
                )  # fmt: skip

    def whole_moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield moments as ``momentum.<name>``, one after the other; on all ranks at once, right on rank 0 only."""
        layout = self.map.layout
        for tensor in self._tensors:
            for number, moment in enumerate(tensor.rule.moments):
                whole = torch.zeros(layout.shapes[tensor.index], dtype=self._flats[0].dtype, device=layout.device)
                for own, kept in zip(self.map.slices, self._moments, strict=True):
                    if own.tensor == tensor.index:
                        own.within(whole).copy_(kept[number])
                if ranks() > 1:
                    dist.reduce(whole, 0)
                yield f"{moment.name}.{tensor.name}", whole


class FlatSteps(torch.optim.Optimizer):
    """What DeepSpeed is given as its optimizer: steps of a ``HiddenAccumulation`` on one flat tensor after the other.

    ``attach`` says how DeepSpeed has cut up the parameters. Then, for every micro-batch and after its backward:

        flat_steps.note_trained(params)         # matters under ``Options.lazy_tensors`` only
        if flat_steps.wants_gradients:  flat_steps.fold(gradients)
        if optimizer.ends_step:         flat_steps.decide()
                                        flat_steps.step()          # DeepSpeed does, for its flat tensors in any order
        optimizer.step()                                           # counts

    Under ``accumulate: gradient`` the gradients handed over are means over the step. A ``micro_batch_weight`` must be
    the same on all ranks.

    Args:
        optimizer: Made, and given its states, while parameters were whole; ``partitioned``.

    Attributes:
        hidden: Whether micro-batches add up in the moments.
    """

    def __init__(self, optimizer: HiddenAccumulation) -> None:
        params = [tensor.param for tensor in optimizer.tensors]
        super().__init__(params, {"lr": optimizer.param_groups[0]["lr"]})
        self.hidden = optimizer.options.accumulate == "momentum"
        self._optimizer = optimizer
        self._sizes = StepSizes(torch.empty(0), torch.empty(0))
        self._noted: set[int] = set()

    @torch.no_grad()
    def attach(self, flats: Sequence[Tensor], slices: Sequence[TensorSlice]) -> None:
        """Keep only this rank's slices of the moments; see ``TensorSlices``."""
        optimizer = self._optimizer
        self._storage = TensorSlices(optimizer.tensors, flats, SliceMap(optimizer.layout, slices))
        optimizer.keep_in(self._storage)

    @property
    def wants_gradients(self) -> bool:
        """Whether the gradients of the open micro-batch are to be folded."""
        return self.hidden or self._optimizer.ends_step

    def note_trained(self, params: Iterable[Tensor]) -> None:
        """Under ``lazy_tensors``: note what the open micro-batch trains on this rank.

        DeepSpeed's reductions want a gradient of every parameter on every rank, so none tells what trained it. What no
        rank has noted in a step rests.
        """
        self._noted.update(map(id, params))

    @torch.no_grad()
    def fold(self, gradients: Sequence[Tensor]) -> None:
        """Take in the gradients of one micro-batch, or of a step; a bad one is left out as a whole, on all ranks.

        Args:
            gradients: For each slice the mean over the ranks, [numel]; overwritten.

        Raises:
            ValueError: On every rank, if a tensor is trained on one and frozen on another.
        """
        optimizer = self._optimizer
        optimizer.apply_settings()
        options, slices = optimizer.options, self._storage.map.slices
        trained, done = self._agree_on_trained(), [tensor.folded for tensor in optimizer.tensors]
        bad = self._find_bad(gradients)
        optimizer.guard.mark(slice(None), bad)
        share = optimizer.micro_batch_weight / optimizer.accumulation_steps if self.hidden else 1.0
        for index, (own, grad) in enumerate(zip(slices, gradients, strict=True)):
            if not trained[own.tensor]:
                continue
            if options.gradient_keep < 1:
                drop_gradient_(
                    grad, keep=options.gradient_keep, seed=options.seed, step=optimizer.steps,
                    tensor=own.tensor, offset=own.start,
                )  # fmt: skip
            grad[:1].masked_fill_(bad[own.tensor], torch.nan)  # so that ``fold`` sees what other slices have
            self._storage.fold(index, grad, is_first=not done[own.tensor], share=share, rounding=optimizer.rounding)
        for tensor, is_trained in zip(optimizer.tensors, trained, strict=True):
            tensor.folded |= is_trained

    def decide(self) -> None:
        """At the end of a step: agree over the ranks on how far each tensor and row moves."""
        lazy = self._optimizer.options.lazy_tensors
        for tensor in self._optimizer.tensors:
            tensor.rests = not (tensor.folded if lazy else tensor.param.requires_grad)
        self._sizes = self._optimizer.decide_step_sizes()

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  # there is no closure
        """Move the flat tensors that DeepSpeed has put into the groups."""
        optimizer = self._optimizer
        for group in self.param_groups:
            group["lr"] = optimizer.param_groups[0]["lr"]
            for flat in group["params"]:
                self._storage.move(self._sizes, step=optimizer.steps + 1, rounding=optimizer.rounding, flat=flat)

    def whole_moments(self) -> Iterator[tuple[str, Tensor]]:
        """Yield whole moments by name, as ``TensorSlices`` does; a collective call."""
        return self._storage.whole_moments()

    def _agree_on_trained(self) -> list[bool]:
        """Return which tensors take in the gradients that are there now, the same on every rank."""
        tensors = self._optimizer.tensors
        trained = [tensor.param.requires_grad for tensor in tensors]
        if not self._optimizer.options.lazy_tensors:
            return trained
        own = [flag and id(tensor.param) in self._noted for tensor, flag in zip(tensors, trained, strict=True)]
        self._noted.clear()
        return agree_on_participation(tensors, trained=own, marked=[], over_ranks=ranks() > 1).trained

    def _find_bad(self, gradients: Sequence[Tensor]) -> Tensor:
        """Return which tensors have a gradient that is not finite on any rank, bool [tensors]; clip the others."""
        slice_map, options = self._storage.map, self._optimizer.options
        sums = [slice_map.add_up([grad.sum() for grad in gradients])]
        if options.clip_norm is not None:
            sums.append(slice_map.add_up([torch.linalg.vector_norm(grad).square() for grad in gradients]))
        total = sum_over_ranks_(torch.stack(sums))
        if options.clip_norm is not None:
            squares = total[1] if self.hidden else total[1].sum().expand_as(total[1])
            total[1] = clip_factor(squares.sqrt(), options.clip_norm, options.clip_form)
            for own, grad in zip(slice_map.slices, gradients, strict=True):
                grad.mul_(total[1, own.tensor])
        return ~torch.isfinite(total).all(0)
