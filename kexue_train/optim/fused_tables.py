"""Which part of which tensor each program of the fused kernels works on, as int64 tables that the kernels read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from kexue_train.optim.layout import ScalarLayout

_VECTOR_BYTES = 16
_LINE = 512
"""Elements that count as a row where the whole tensor has one scalar."""


class FusedTables(NamedTuple):
    """Good for as long as no tensor is put elsewhere."""

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
