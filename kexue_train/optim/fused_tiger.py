"""Tiger on CUDA: every step over all tensors at once, in as few passes over memory as there can be.

    check_gradients, fold_gradients        up to eight tensors whose gradients backward has just computed
    sum_tile_squares, add_tile_squares     all tensors and rows, for their learning rates
    move_tiles                             all tensors

The host waits for nothing and builds no tables again, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from kexue_train.optim import triton_tiger as kernels
from kexue_train.optim.param_groups import Tracked
from kexue_train.optim.random_bits import PARAMETER, Rounding, part_number
from kexue_train.optim.step_sizes import ScalarLayout, StepSizes
from kexue_train.optim.tiger_update import TigerRule
from kexue_train.optim.waiting_gradients import FoldSettings, WaitingGradients

_Value = TypeVar("_Value")
_TILE = {"rows": kernels.TILE_ROWS, "columns": kernels.TILE_COLUMNS}
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
_VECTOR_BYTES = 16
_LINE = 512
"""Elements that count as a row where the whole tensor has one scalar."""


class FusedTensors:
    """A ``TensorStorage`` of parameters and moments that are whole on every rank, all of one rule of Tiger.

    A launch takes the host longer than the device takes for a small gradient. So gradients wait until there are enough
    of them for one launch, but not longer than to the end of backward.
    """

    def __init__(self, tensors: Sequence[Tracked], rule: TigerRule, layout: ScalarLayout, flags: Tensor) -> None:
        self._rule = rule
        self._fused = FusedTiger(
            [tensor.param for tensor in tensors],
            [tensor.moments[0] for tensor in tensors],
            layout,
            flags=flags,
            streams=[part_number(tensor.index, PARAMETER) for tensor in tensors],
            momentum_streams=[part_number(tensor.index, 0) for tensor in tensors],
            dead_zone=rule.dead_zone,
        )
        self._tensors = tensors
        self._waiting = WaitingGradients(partial(_fold, self._fused), most=kernels.GRADIENTS)

    def fold(self, index: int, grad: Tensor, *, is_first: bool, share: float, rounding: Rounding) -> bool:
        """Take a gradient into the momentum of the ``index``-th tensor; a bad one raises its flag, so none is told."""
        beta = self._tensors[index].rule.moments[0].beta
        self._waiting.add(index, grad, FoldSettings(beta if is_first else 1.0, (1 - beta) * share, rounding))
        return False

    def flush(self) -> None:
        """Fold the gradients that wait."""
        self._waiting.fold()

    def sum_squares(self) -> Tensor:
        """Return the sums of squares of the parameters; see ``FusedTiger``."""
        return self._fused.sum_squares()

    def sum_absolutes(self) -> Tensor:
        """Refuse: a shift needs plain operations, and ``choose_storage`` takes them."""
        raise NotImplementedError("fused kernels move no matrix by a shift")

    def move(self, sizes: StepSizes, *, step: int, rounding: Rounding) -> None:  # noqa: ARG002  # no bias to correct
        """Move all parameters."""
        self._fused.move(sizes.step, sizes.decay, seed=rounding.seed, stream=rounding.stream(0))


def _fold(fused: FusedTiger, gradients: Mapping[int, Tensor], settings: FoldSettings) -> None:
    decay, weight, rounding = settings
    fused.fold(gradients, decay=decay, weight=weight, seed=rounding.seed, stream=rounding.stream(0))


class FusedTiger:
    """Folds and moves given tensors; how far is the caller's to decide.

    Args:
        params: On the current CUDA device; contiguous, all fp32 or all bf16.
        momenta: For each parameter as many elements; contiguous, all fp32 or all bf16. Views of one tensor will do,
            best if each starts at a multiple of 16 bytes.
        layout: Where the scalars of each parameter lie.
        flags: fp32 [params]; gets a 1 for each parameter with a bad gradient, never a 0.
        streams: For each parameter, what is added to the stream of ``move``.
        momentum_streams: For each, what is added to the stream of ``fold``.
        dead_zone: Momenta below this in size count as zero.

    Raises:
        ValueError: If a tensor is of another type, or not contiguous.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        momenta: Sequence[Tensor],
        layout: ScalarLayout,
        *,
        flags: Tensor,
        streams: Sequence[int],
        momentum_streams: Sequence[int],
        dead_zone: float = 0.0,
    ) -> None:
        self.params, self.momenta, self.layout = params, momenta, layout
        self.flags, self.dead_zone = flags, dead_zone
        self._streams, self._momentum_streams = streams, momentum_streams
        self._verdicts = torch.zeros(len(params), kernels.CHECKERS, dtype=torch.int32, device=layout.device)
        self._addresses: list[int] = []
        self._current_tables()

    def fold(
        self, gradients: Mapping[int, Tensor], *, decay: float, weight: float, seed: int | Tensor, stream: int | Tensor
    ) -> None:
        """Fold into the momenta of some tensors, m ← decay·m + weight·g; one with a NaN or Inf only raises its flag.

        Args:
            gradients: By index of the parameter, each of as many elements; at most eight, of one floating-point type.
            decay: 1, or β for the first gradient of a step.
            weight: Weight of these gradients.
            seed: For bf16 momenta; an int, or an int64 tensor of one element on the device.
            stream: The same; ``momentum_streams`` are added to it.
        """
        some = {index: grad.contiguous() for index, grad in gradients.items() if grad.numel()}
        if not some:
            return
        chunks = [triton.cdiv(grad.numel(), kernels.CHUNK) for grad in some.values()]
        checks = [min(count, kernels.CHECKERS) for count in chunks]
        table, given = self._current_homes(some), (*_filled(some.values()), *_filled(some))
        size = {"checkers": kernels.CHECKERS, "block": kernels.CHUNK, "num_warps": kernels.WARPS}
        kernels.check_gradients[(sum(checks),)](
            table, self.flags, self._verdicts, *given, *_filled(accumulate(checks))[:-1], **size
        )
        kernels.fold_gradients[(sum(chunks),)](
            table, self._verdicts, *given, *_filled(accumulate(chunks))[:-1], decay, weight, seed, _as_wide(stream),
            momentum_type=self._types[1], **size,
        )  # fmt: skip

    def sum_squares(self) -> Tensor:
        """Return the sums of squares of parameters or rows, fp32 [total]; the next call overwrites them."""
        tiles, spans, sums, _ = self._current_tables()
        if len(tiles):
            kernels.sum_tile_squares[(len(tiles),)](
                tiles, sums, parameter_type=self._types[0], **_TILE, num_warps=kernels.WARPS
            )
        if len(spans):
            kernels.add_tile_squares[(len(spans),)](spans, sums, block=kernels.SPAN)
        return sums[: self.layout.total]

    def move(self, step: Tensor, decay: Tensor, *, seed: int | Tensor, stream: int | Tensor) -> None:
        """Move all parameters, θ ← θ - (step·sign(m) + decay·θ).

        Args:
            step: fp32 [total] of the layout, contiguous.
            decay: The same.
            seed: For bf16 parameters; an int, or an int64 tensor of one element on the device.
            stream: The same; ``streams`` are added to it.
        """
        tiles = self._current_tables().tiles
        if len(tiles):
            kernels.move_tiles[(len(tiles),)](
                tiles, step, decay, self.dead_zone, seed, _as_wide(stream),
                parameter_type=self._types[0], momentum_type=self._types[1], **_TILE, num_warps=kernels.WARPS,
            )  # fmt: skip

    def _current_tables(self) -> FusedTables:
        """Build the tables again if a tensor was put elsewhere: kernels would go on writing where it has been."""
        addresses = [tensor.data_ptr() for tensor in (*self.params, *self.momenta)]
        if addresses != self._addresses:
            self._addresses = addresses
            self._types = _common_type(self.params), _common_type(self.momenta)
            self._tables = fused_tables(
                self.params, self.momenta, self.layout, self._streams, self._momentum_streams, **_TILE
            )
        return self._tables

    def _current_homes(self, indices: Iterable[int]) -> Tensor:
        """Return the table of the momenta, built again if one of these was put elsewhere."""
        known = self._addresses[len(self.params) :]
        if any(self.momenta[index].data_ptr() != known[index] for index in indices):
            self._current_tables()
        return self._tables.momenta


class FusedTables(NamedTuple):
    """Which part of which tensor each program works on, as int64; good for as long as no tensor is put elsewhere."""

    tiles: Tensor
    """[n, 10]: address of the parameter and of the momentum; place of the first element in its tensor; elements of the
    tile; elements per row; index of the first row's scalar; 1 if the next row has the next scalar, 0 if it has the
    same; where the sum of squares goes, or those of the rows; number of the tensor's stream; 1 if the tile is full and
    aligned."""
    spans: Tensor
    """[n, 3]: where the sums of a tensor's tiles begin; how many they are; where their sum goes."""
    sums: Tensor
    """fp32, the scalars of the layout and after them the sums of tiles."""
    momenta: Tensor
    """[parameters, 3]: address of the momentum; elements; number of the stream that it is rounded with."""


def fused_tables(
    params: Sequence[Tensor],
    momenta: Sequence[Tensor],
    layout: ScalarLayout,
    streams: Sequence[int],
    momentum_streams: Sequence[int],
    *,
    rows: int,
    columns: int,
) -> FusedTables:
    """Cut all tensors into tiles of ``rows`` rows, to be read ``columns`` at a time.

    With 32 rows, a table [40, 77] becomes the tiles of its rows 0 to 31 and 32 to 39, whose sums go to the 40 scalars
    of the rows. A matrix [130, 131] of 17,030 elements is read as lines of 512, so a tile has 16,384 elements and there
    are two; their two sums go behind the scalars of the layout, and a span adds them up into the matrix's one scalar.

    Raises:
        ValueError: If a tensor is so large that a number in a kernel would need more than 32 bits.
    """
    tiles, spans, length = [], [], layout.total
    firsts = list(accumulate(layout.counts, initial=0))[:-1]
    for param, momentum, first, count, stream in zip(params, momenta, firsts, layout.counts, streams, strict=True):
        if not param.numel():
            continue
        row_wise = int(count > 1)
        width = param.numel() // count if row_wise else _LINE
        size = rows * width
        if size >= 1 << 31 or param.numel() > 1 << 32:
            raise ValueError(f"a parameter of shape {tuple(param.shape)}: 2**32 elements are the most, 2**26 of a row")
        start = torch.arange(0, param.numel(), size)
        elements = (param.numel() - start).clamp(max=size)
        addresses = [tensor.data_ptr() + start * tensor.element_size() for tensor in (param, momentum)]
        whole = (elements == size) & torch.tensor(width % columns == 0)
        for address in addresses:
            whole &= address % _VECTOR_BYTES == 0
        scalar = first + row_wise * (start // width)
        target = scalar if row_wise else length + torch.arange(len(start))
        tiles.append(_columns(*addresses, start, elements, width, scalar, row_wise, target, stream, whole))
        if not row_wise:
            spans.append(_columns(torch.tensor([length]), len(start), first))
            length += len(start)
    sums = torch.zeros(length, device=layout.device)
    none = torch.zeros(0, dtype=torch.int64)
    homes = [[m.data_ptr(), m.numel(), stream] for m, stream in zip(momenta, momentum_streams, strict=True)]
    return FusedTables(
        torch.cat([*tiles, _columns(*[none] * 10)]).to(layout.device),
        torch.cat([*spans, _columns(*[none] * 3)]).to(layout.device),
        sums,
        torch.tensor(homes, dtype=torch.int64, device=layout.device),
    )


def _columns(first: Tensor, *others: Tensor | int) -> Tensor:
    return torch.stack([first, *(torch.zeros_like(first) + other for other in others)], 1)


def try_kernel(device: torch.device) -> None:
    """Compile and run a small kernel; raises whatever Triton, a compiler or a driver raise."""
    spans, sums = torch.zeros(1, 3, dtype=torch.int64, device=device), torch.zeros(1, device=device)
    kernels.add_tile_squares[(1,)](spans, sums, block=kernels.SPAN)


def _as_wide(stream: int | Tensor) -> int | Tensor:
    """Return the number of a stream with a bit that makes it an int64: kernels are compiled for the size of an int."""
    return stream | kernels.WIDE if isinstance(stream, int) else stream


def _common_type(tensors: Sequence[Tensor]) -> tl.dtype:
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) != 1 or not kinds <= _TYPES.keys() or not all(tensor.is_contiguous() for tensor in tensors):
        found = ", ".join(sorted(map(str, kinds)))
        raise ValueError(
            f"FusedTiger needs contiguous tensors, all of one type, torch.float32 or bfloat16; got {found}"
        )
    return _TYPES[kinds.pop()]


def _filled(values: Iterable[_Value]) -> list[_Value]:
    """Return as many as the kernels take, the last ones again: no program works on those."""
    given = list(values)
    return given + given[-1:] * (kernels.GRADIENTS - len(given))
