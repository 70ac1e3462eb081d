"""Hidden accumulation where each rank keeps and moves only its partition of parameters and moments (ZeRO 1, 2 and 3).

Somebody else (DeepSpeed) reduces gradients to partitions and publishes moved ones. Gradients are folded after every
micro-batch, since the moments lie cut up like them: k micro-batches take k reductions, where whole moments take one.
All that a step needs of whole tensors is in vectors of a few thousand numbers, which are added up over the ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.clipping import clip_factor
from kexue_train.optim.gradient_dropout import drop_gradient_
from kexue_train.optim.options import Options
from kexue_train.optim.rank_average import ranks
from kexue_train.optim.rules import Rule
from kexue_train.optim.segments import Segment, SegmentMap
from kexue_train.optim.whole_tensors import fold, move


class PartitionedAccumulation(HiddenAccumulation):
    """Made (and given states) like a ``HiddenAccumulation``, until ``attach`` says how the parameters were cut up.

    From then on, for every micro-batch and after its backward:

        if optimizer.wants_gradients:  optimizer.fold_slices(gradients)
        if optimizer.ends_window:      optimizer.decide_step()
                                       optimizer.move_flat(flat)       # each one, in any order
        optimizer.step()                                               # counts

    Under ``accumulate: gradient`` the gradients handed over are means over the window. A ``micro_batch_weight`` must
    be the same on all ranks.

    Attributes:
        hidden: Whether micro-batches add up in the moments.

    Raises:
        ValueError: If an option cannot be had so.
    """

    def __init__(
        self,
        params: Any,
        rule: Rule,
        defaults: dict[str, Any],
        *,
        accumulation_steps: int = 1,
        options: Options = Options(),  # noqa: B008  # frozen
    ) -> None:
        if options.bf16_states:
            raise ValueError(
                "bf16_states keeps no fp32 weights, which ZeRO partitions; take ZeRO stage 0 or fp32 states"
            )
        self.hidden = options.accumulate == "momentum"
        # No hooks, no averages: gradients come reduced.
        options = replace(options, accumulate="gradient", average_over_ranks=False)
        super().__init__(params, rule, defaults, accumulation_steps=accumulation_steps, options=options)
        self._flats: Sequence[Tensor] = ()
        self._map = SegmentMap(self.layout, ())
        self._slices: list[list[Tensor]] = []
        self._step_size = self._drop = torch.empty(0)

    @torch.no_grad()
    def attach(self, flats: Sequence[Tensor], segments: Sequence[Segment]) -> None:
        """Keep only this rank's slices of the moments.

        Args:
            flats: Tensors that hold this rank's slices of the parameters.
            segments: Where each lies; tensors are counted in the order of the parameter groups.
        """
        self._flats, self._map = flats, SegmentMap(self.layout, segments)
        self._slices = [
            [segment.within(moment).clone() for moment in self._tensors[segment.tensor].moments] for segment in segments
        ]
        self.state.clear()
        del self._flat, self._average
        for tensor in self._tensors:
            tensor.moments = ()

    @property
    def ends_window(self) -> bool:
        """Whether the open micro-batch is the last of its window."""
        return self.filled + 1 == self.accumulation_steps

    @property
    def wants_gradients(self) -> bool:
        """Whether the gradients of the open micro-batch are to be folded."""
        return self.hidden or self.ends_window

    @torch.no_grad()
    def fold_slices(self, gradients: Sequence[Tensor]) -> None:
        """Take in the gradients of one micro-batch, or of a window; a bad one is left out as a whole, on all ranks.

        Args:
            gradients: For each segment the mean over the ranks, [numel]; overwritten.
        """
        bad = self._judge(gradients)
        torch.maximum(self._guard.flags, bad.to(self._guard.flags.dtype), out=self._guard.flags)
        share = self.micro_batch_weight / self.accumulation_steps if self.hidden else 1.0
        first = self.filled == 0 or not self.hidden
        for segment, moments, grad in zip(self._map.segments, self._slices, gradients, strict=True):
            if self.options.gradient_keep < 1:
                drop_gradient_(
                    grad, keep=self.options.gradient_keep, seed=self.options.seed, step=self.steps,
                    tensor=segment.tensor, offset=segment.start,
                )  # fmt: skip
            grad[:1].masked_fill_(bad[segment.tensor], torch.nan)  # for ``fold`` to see what other slices have
            rule = self._tensors[segment.tensor].rule
            fold(rule, moments, grad, first=first, share=share, rounding=self._rounding(), number=segment.tensor)

    @torch.no_grad()
    def decide_step(self) -> None:
        """At the end of a window: agree over the ranks on how far each tensor and row moves."""
        self._step_size, self._drop = self._scalars()

    @torch.no_grad()
    def move_flat(self, flat: Tensor) -> None:
        """Move the slices that lie in ``flat``, one of the tensors given to ``attach``."""
        for segment, blocks, moments in zip(self._map.segments, self._map.blocks, self._slices, strict=True):
            if self._flats[segment.flat] is not flat:
                continue
            for block in blocks:
                move(
                    self._tensors[segment.tensor].rule, block.of(segment.of(self._flats)),
                    [block.of(moment) for moment in moments],
                    self._step_size[block.lines], self._drop[block.lines],
                    window=self.steps + 1, rounding=self._rounding(), number=segment.tensor,
                )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: None = None) -> bool:  # type: ignore[override]  # noqa: ARG002  # as its parent
        """Count a micro-batch.

        Returns:
            Whether it was the last of its window, so that the parameters have moved.
        """
        self.micro_batch_weight = 1.0
        if not self.ends_window:
            self.filled += 1
            return False
        self.restart_at(self.steps + 1)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Only before ``attach``; see ``whole_moments``.

        Raises:
            RuntimeError: Afterwards.
        """
        if self._flats:
            raise RuntimeError("states lie in slices on all ranks; whole_moments() puts them together")
        return super().state_dict()

    def whole_moments(self) -> Iterator[tuple[str, Tensor]]:
        """Moments as ``momentum.<name>``, one after the other; on all ranks at once, right on rank 0 only."""
        for tensor in self._tensors:
            for number, moment in enumerate(tensor.rule.moments):
                whole = torch.zeros(
                    self.layout.shapes[tensor.index], dtype=self._flats[0].dtype, device=self.layout.device
                )
                for segment, kept in zip(self._map.segments, self._slices, strict=True):
                    if segment.tensor == tensor.index:
                        segment.within(whole).copy_(kept[number])
                if ranks() > 1:
                    dist.reduce(whole, 0)
                yield f"{moment.name}.{tensor.name}", whole

    def _judge(self, gradients: Sequence[Tensor]) -> Tensor:
        """Which tensors have a gradient that is not finite on any rank, bool [tensors]; clips the others if told to."""
        sums = [self._map.add_up([grad.sum() for grad in gradients])]
        limit = self.options.clip_norm
        if limit is not None:
            sums.append(self._map.add_up([torch.linalg.vector_norm(grad).square() for grad in gradients]))
        total = torch.stack(sums)
        if ranks() > 1:
            dist.all_reduce(total)
        if limit is not None:
            squares = total[1] if self.hidden else total[1].sum().expand_as(total[1])
            total[1] = clip_factor(squares.sqrt(), limit, self.options.clip_form)
            for segment, grad in zip(self._map.segments, gradients, strict=True):
                grad.mul_(total[1, segment.tensor])
        return ~torch.isfinite(total).all(0)

    def _sum_squares(self) -> Tensor:
        sums = self._map.sum_squares([segment.of(self._flats) for segment in self._map.segments])
        if ranks() > 1:
            dist.all_reduce(sums)
        return sums


class FlatSteps(torch.optim.Optimizer):
    """What DeepSpeed is given as its optimizer: it steps on one flat tensor after the other, when a window ends."""

    def __init__(self, optimizer: PartitionedAccumulation) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        super().__init__(params, {"lr": optimizer.param_groups[0]["lr"]})
        self._optimizer = optimizer

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002  # there is no closure
        """Move the flat tensors that DeepSpeed has put into the groups."""
        for group in self.param_groups:
            group["lr"] = self._optimizer.param_groups[0]["lr"]
            for flat in group["params"]:
                self._optimizer.move_flat(flat)
