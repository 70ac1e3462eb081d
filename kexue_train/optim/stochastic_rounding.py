"""Round fp32 to bf16 up or down at random, so that the expected result is the value itself.

Rounding to nearest loses every change below half a bf16 step, 2⁻⁹ of the value: one step of training mostly is. Here
the 16 bits that bf16 drops, as a fraction of a bf16 step, are the probability of the neighbour further from zero.

Source: Gupta et al., "Deep learning with limited numerical precision" (2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kexue_train.optim.random_bits import random_bits


def round_stochastically(values: Tensor, *, seed: int, stream: int, offset: int = 0) -> Tensor:
    """Round to one of the two bf16 neighbours, unbiased.

    What bf16 can hold stays, NaN and ±Inf too. A finite value beyond ±3.39e38, the largest of bf16, becomes that or
    ±Inf with the probabilities that a further step of bf16 would have: the one case in which a step leaves the range.

    Args:
        values: fp32, any shape.
        seed: As of ``random_bits``.
        stream: As of ``random_bits``.
        offset: Place of the first value in its stream.

    Returns:
        bf16, same shape.

    Raises:
        TypeError: If ``values`` is not fp32.
    """
    if values.dtype != torch.float32:
        raise TypeError(f"round_stochastically needs torch.float32, got {values.dtype}")
    bits = random_bits(values.numel(), seed=seed, stream=stream, offset=offset, device=values.device)
    bits = bits.view(values.shape).add_(values.view(torch.int32)).bitwise_and_(-0x10000)
    # An Inf has no bits below the kept ones, so nothing carries; a NaN may have them and would become anything.
    return torch.where(values.isnan(), values, bits.view(torch.float32)).to(torch.bfloat16)


PARAMETER = 3
"""Part of a tensor that is the parameter itself; its moments are 0, 1 and 2."""


def part_number(tensor: int, part: int) -> int:
    """What tells the streams of random bits of one moment in time apart; below 2**24."""
    return tensor * 4 + part


@dataclass(frozen=True)
class Rounding:
    """Which random bits states are rounded with: they follow from the time, the number of the part, and the element."""

    seed: int
    time: int
    """Micro-batches so far, below 2**38."""

    def stream(self, number: int) -> int:
        """The stream of a part."""
        return (self.time << 24) + number

    def store(self, target: Tensor, values: Tensor, *, number: int, offset: int = 0) -> None:
        """Write ``values`` [n] to ``target`` [n], rounded if that is bf16.

        Args:
            target: Elements ``offset ... offset + n - 1`` of a part.
            values: At least fp32.
            number: Of the part.
            offset: See ``target``.
        """
        if target.dtype == torch.bfloat16:
            values = round_stochastically(values, seed=self.seed, stream=self.stream(number), offset=offset)
        target.copy_(values)
