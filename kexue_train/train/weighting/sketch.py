"""About a thousand numbers from which the inner products of whole gradients can be told: a random-sign sketch.

Each element of a gradient gets a random sign, and elements 1021 apart add up (a count sketch whose buckets follow the
place):

    s_b = Σ_{j mod m = b} σ_j g_j        m = 1021, σ_j = ±1

The signs follow from (seed, tensor, element) alone, so they are the same for all tasks, steps and ranks. Then
E⟨s(g), s(h)⟩ = ⟨g, h⟩, as other pairs of elements meet with signs that cancel in the mean, and

    Var⟨s(g), s(h)⟩ ≈ (‖g‖²‖h‖² + ⟨g, h⟩²) / m

when no bucket holds much more than its share. That is why m is prime: no row or column of a weight, however much it
stands out, falls into few buckets. A sketch is linear: a mean of sketches is the sketch of the mean.

Signs are made in pieces and never kept. One random word has the signs of 16 rows of 1021 elements at one place.

Source: Charikar, Chen and Farach-Colton, "Finding frequent items in data streams" (2002), for signs and buckets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor

from kexue_train.optim.random_bits import random_bits

SKETCH_SIZE = 1021
"""Numbers of a sketch; prime."""
_ROWS = 16
"""Rows that have their signs in one word of ``random_bits``."""
_PERIOD = _ROWS * SKETCH_SIZE
_CPU_PIECE, _GPU_PIECE = 32 * _PERIOD, 256 * _PERIOD
"""Elements that get their signs at once: few enough for the caches of a CPU, many enough to keep a GPU busy."""
_SIGN_BIT = -(2**31)
_STREAMS = 3 << 61
"""Signs draw from the streams from here on: 2⁶² + 2⁶¹. Gradient dropout has those from 2⁶² on, rounding those below."""


@torch.no_grad()
def add_sketch_(sketch: Tensor, gradient: Tensor, *, seed: int, tensor: int) -> None:
    """Add the sketch of a gradient to ``sketch`` in place.

    Args:
        sketch: [SKETCH_SIZE], fp32.
        gradient: Any shape and floating type; counts as fp32, its elements in row-major order.
        seed: The run's seed, ``0 <= seed < 2**63``.
        tensor: Which tensor it is of, ``0 <= tensor < 2**61``.
    """
    flat = gradient.detach().reshape(-1)
    size = _GPU_PIECE if flat.is_cuda else _CPU_PIECE
    for number, piece in enumerate(torch.split(flat, size)):
        sketch += _sketch_of_piece(piece, seed=seed, tensor=tensor, first_period=number * (size // _PERIOD))


def _sketch_of_piece(piece: Tensor, *, seed: int, tensor: int, first_period: int) -> Tensor:
    # Behind the last element come zeros, to the end of its row or, if there are several periods, of its period. So a
    # vector of 768 is one row of 1021, and a matrix of 589,824 elements 37 periods of 16 rows.
    unit = _PERIOD if piece.numel() > _PERIOD else SKETCH_SIZE
    values, missing = piece.to(torch.float32), -piece.numel() % unit
    if missing:
        values = F.pad(values, (0, missing))
    rows = max(1, min(values.numel() // SKETCH_SIZE, _ROWS))
    periods = values.numel() // (rows * SKETCH_SIZE)
    words = random_bits(
        periods * SKETCH_SIZE, seed=seed, stream=_STREAMS + tensor, offset=first_period * SKETCH_SIZE,
        device=piece.device,
    )  # fmt: skip
    # Row r takes bit 15 - r, which a shift brings to the place of the sign of an fp32.
    shifts = torch.arange(16, 16 + rows, dtype=torch.int32, device=piece.device)
    flips = (words.view(periods, 1, SKETCH_SIZE) << shifts.view(1, rows, 1)).bitwise_and_(_SIGN_BIT)
    flips.bitwise_xor_(values.view(torch.int32).view(periods, rows, SKETCH_SIZE))
    return flips.view(torch.float32).flatten(0, 1).sum(0)
