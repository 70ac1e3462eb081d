"""Tiger on CUDA: every step over all tensors at once, in as few passes over memory as there can be.

    check, fold            one tensor, as soon as backward has its gradient
    sum_squares, add_up    all tensors and rows, for their learning rates
    move                   all tensors

The host waits for nothing and builds nothing anew, so all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kexue_train.optim import triton_tiger as kernels
from kexue_train.optim.fused_tables import FusedTables, fused_tables
from kexue_train.optim.layout import ScalarLayout

_TILE = {"rows": kernels.TILE_ROWS, "columns": kernels.TILE_COLUMNS}
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


class FusedTiger:
    """Folds and moves given tensors; how far is the caller's to decide.

    Args:
        params: On the current CUDA device; contiguous, all fp32 or all bf16.
        momenta: Of each parameter, as many elements; contiguous, all fp32 or all bf16. Views of one tensor will do,
            best if each starts at a multiple of 16 bytes.
        layout: Where the scalars of each parameter lie.
        flags: fp32 [params]; gets a 1 for each parameter with a bad gradient, never a 0.
        streams: Of each parameter, what is added to the stream of ``move``.
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
        self._types = _common_type(params), _common_type(momenta)
        self.params, self.momenta, self.layout = params, momenta, layout
        self.flags, self.streams, self.dead_zone = flags, streams, dead_zone
        self._verdicts = torch.zeros(len(params), kernels.CHECKERS, dtype=torch.int32, device=layout.device)
        self._addresses: list[int] = []
        self._current_tables()

    def fold(
        self, index: int, grad: Tensor, *, decay: float, weight: float, seed: int | Tensor, stream: int | Tensor
    ) -> None:
        """Momentum of one parameter: m ← decay·m + weight·g; a gradient with a NaN or Inf only raises its flag.

        Args:
            index: Of the parameter.
            grad: As many elements, of any floating-point type.
            decay: 1, or β for the first gradient of a window.
            weight: Of this gradient.
            seed: For bf16 momenta; an int, or an int64 tensor of one element on the device.
            stream: The same.
        """
        grad, numel = grad.contiguous(), grad.numel()
        chunks = triton.cdiv(numel, kernels.CHUNK)
        if not chunks:
            return
        verdicts, checkers = self._verdicts[index], min(chunks, kernels.CHECKERS)
        kernels.check[(checkers,)](
            grad, numel, self.flags[index], verdicts, block=kernels.CHUNK, num_warps=kernels.WARPS
        )
        kernels.fold[(chunks,)](
            self.momenta[index],
            grad,
            numel,
            verdicts,
            decay,
            weight,
            seed,
            stream,
            checkers=kernels.CHECKERS,
            block=kernels.CHUNK,
            num_warps=kernels.WARPS,
        )

    def sum_squares(self) -> Tensor:
        """Sums of squares of every parameter or row, fp32 [total] of the layout; the next call overwrites them."""
        tiles, spans, sums = self._current_tables()
        if len(tiles):
            kernels.sum_squares[(len(tiles),)](
                tiles, sums, parameter_type=self._types[0], **_TILE, num_warps=kernels.WARPS
            )
        if len(spans):
            kernels.add_up[(len(spans),)](spans, sums, block=kernels.SPAN)
        return sums[: self.layout.total]

    def move(self, step: Tensor, drop: Tensor, *, seed: int | Tensor, stream: int | Tensor) -> None:
        """θ ← θ - (step·sign(m) + drop·θ) for all parameters.

        Args:
            step: fp32 [total] of the layout, contiguous.
            drop: The same.
            seed: For bf16 parameters; an int, or an int64 tensor of one element on the device.
            stream: The same; ``streams`` are added to it.
        """
        tiles = self._current_tables().tiles
        if len(tiles):
            kernels.move[(len(tiles),)](
                tiles,
                step,
                drop,
                self.dead_zone,
                seed,
                stream,
                parameter_type=self._types[0],
                momentum_type=self._types[1],
                **_TILE,
                num_warps=kernels.WARPS,
            )

    def _current_tables(self) -> FusedTables:
        """Built anew if a tensor was put elsewhere: kernels would go on writing where it has been."""
        addresses = [tensor.data_ptr() for tensor in (*self.params, *self.momenta)]
        if addresses != self._addresses:
            self._addresses = addresses
            self._tables = fused_tables(self.params, self.momenta, self.layout, self.streams, **_TILE)
        return self._tables


def _common_type(tensors: Sequence[Tensor]) -> tl.dtype:
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) != 1 or not kinds <= _TYPES.keys() or not all(tensor.is_contiguous() for tensor in tensors):
        found = ", ".join(sorted(map(str, kinds)))
        raise ValueError(
            f"FusedTiger needs contiguous tensors, all of one type, torch.float32 or bfloat16; got {found}"
        )
    return _TYPES[kinds.pop()]
