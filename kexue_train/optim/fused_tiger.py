"""Tiger on CUDA: every step over all tensors at once, in as few passes over memory as there can be.

    check_gradient, fold_gradient          one tensor, as soon as backward has its gradient
    sum_tile_squares, add_tile_squares     all tensors and rows, for their learning rates
    move_tiles                             all tensors

The host waits for nothing and builds no tables again, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kexue_train.optim import triton_tiger as kernels
from kexue_train.optim.param_groups import Tracked
from kexue_train.optim.random_bits import PARAMETER, Rounding, part_number
from kexue_train.optim.step_sizes import ScalarLayout, StepSizes
from kexue_train.optim.tiger_update import TigerRule

_TILE = {"rows": kernels.TILE_ROWS, "columns": kernels.TILE_COLUMNS}
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
_VECTOR_BYTES = 16
_LINE = 512
"""Elements that count as a row where the whole tensor has one scalar."""


class FusedTensors:
    """A ``TensorStorage`` of parameters and moments that are whole on every rank, all of one rule of Tiger."""

    def __init__(self, tensors: Sequence[Tracked], rule: TigerRule, layout: ScalarLayout, flags: Tensor) -> None:
        self._rule = rule
        self._fused = FusedTiger(
            [tensor.param for tensor in tensors],
            [tensor.moments[0] for tensor in tensors],
            layout,
            flags=flags,
            streams=[part_number(tensor.index, PARAMETER) for tensor in tensors],
            dead_zone=rule.dead_zone,
        )
        self._tensors = tensors

    def fold(self, index: int, grad: Tensor, *, is_first: bool, share: float, rounding: Rounding) -> bool:
        """Take a gradient into the momentum of the ``index``-th tensor; a bad one raises its flag, so none is told."""
        beta = self._tensors[index].rule.moments[0].beta
        self._fused.fold(
            index, grad, decay=beta if is_first else 1.0, weight=(1 - beta) * share,
            seed=rounding.seed, stream=rounding.stream(part_number(index, 0)),
        )  # fmt: skip
        return False

    def sum_squares(self) -> Tensor:
        """Return the sums of squares of the parameters; see ``FusedTiger``."""
        return self._fused.sum_squares()

    def move(self, sizes: StepSizes, *, step: int, rounding: Rounding) -> None:  # noqa: ARG002  # no bias to correct
        """Move all parameters."""
        self._fused.move(sizes.step, sizes.decay, seed=rounding.seed, stream=rounding.stream(0))


class FusedTiger:
    """Folds and moves given tensors; how far is the caller's to decide.

    Args:
        params: On the current CUDA device; contiguous, all fp32 or all bf16.
        momenta: For each parameter as many elements; contiguous, all fp32 or all bf16. Views of one tensor will do,
            best if each starts at a multiple of 16 bytes.
        layout: Where the scalars of each parameter lie.
        flags: fp32 [params]; gets a 1 for each parameter with a bad gradient, never a 0.
        streams: For each parameter, what is added to the stream of ``move``.
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
        dead_zone: float = 0.0,
    ) -> None:
        self.params, self.momenta, self.layout = params, momenta, layout
        self.flags, self.streams, self.dead_zone = flags, streams, dead_zone
        self._verdicts = torch.zeros(len(params), kernels.CHECKERS, dtype=torch.int32, device=layout.device)
        self._addresses: list[int] = []
        self._current_tables()

    def fold(
        self, index: int, grad: Tensor, *, decay: float, weight: float, seed: int | Tensor, stream: int | Tensor
    ) -> None:
        """Fold into one momentum, m ← decay·m + weight·g; a gradient with a NaN or Inf only raises its flag.

        Args:
            index: Which parameter.
            grad: As many elements, of any floating-point type.
            decay: 1, or β for the first gradient of a step.
            weight: Weight of this gradient.
            seed: For bf16 momenta; an int, or an int64 tensor of one element on the device.
            stream: The same.
        """
        grad, numel = grad.contiguous(), grad.numel()
        chunks = triton.cdiv(numel, kernels.CHUNK)
        if not chunks:
            return
        verdicts, checkers = self._verdicts[index], min(chunks, kernels.CHECKERS)
        size = {"block": kernels.CHUNK, "num_warps": kernels.WARPS}
        kernels.check_gradient[(checkers,)](grad, numel, self.flags[index], verdicts, **size)
        kernels.fold_gradient[(chunks,)](
            self.momenta[index], grad, numel, verdicts, decay, weight, seed, _as_wide(stream),
            checkers=kernels.CHECKERS, **size,
        )  # fmt: skip

    def sum_squares(self) -> Tensor:
        """Return the sums of squares of parameters or rows, fp32 [total]; the next call overwrites them."""
        tiles, spans, sums = self._current_tables()
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
            self._tables = fused_tables(self.params, self.momenta, self.layout, self.streams, **_TILE)
        return self._tables


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


def fused_tables(
    params: Sequence[Tensor],
    momenta: Sequence[Tensor],
    layout: ScalarLayout,
    streams: Sequence[int],
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
    return FusedTables(
        torch.cat([*tiles, _columns(*[none] * 10)]).to(layout.device),
        torch.cat([*spans, _columns(*[none] * 3)]).to(layout.device),
        sums,
    )


def _columns(first: Tensor, *others: Tensor | int) -> Tensor:
    return torch.stack([first, *(torch.zeros_like(first) + other for other in others)], 1)


def try_kernel(device: torch.device) -> None:
    """Compile and run the smallest kernel; raises whatever Triton, a compiler or a driver raise."""
    none = torch.zeros(1, device=device)
    kernels.check_gradient[(1,)](none, 1, none, torch.zeros(1, dtype=torch.int32, device=device), block=kernels.CHUNK)


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
