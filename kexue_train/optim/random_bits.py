"""Random bits as a hash of where they are used, and stochastic rounding with them.

The numbers are the same on a CPU, on a GPU and inside a kernel, and there is no state. They are for stochastic rounding
and dropout only: fast, and even enough that no bias shows, but nothing more is claimed. The order of data, masks and
initial weights come from ``foundation.counter_rng`` (Philox) instead.

Two words made of (seed, stream) key a hash of the number of each pair of elements: two rounds of a 32-bit finaliser,
one word before each. The first element of a pair takes the low half of the result, the second the high half.

Rounding fp32 to the nearest bf16 loses every change below half a bf16 step, 2⁻⁹ of the value: one step of training
mostly is. Here the 16 bits that bf16 drops, as a fraction of a bf16 step, are the probability of the neighbour further
from zero, so the expected result is the value itself.

Sources: Chris Wellons, "hash prospector" (github.com/skeeto/hash-prospector), for the finaliser, the least biased of
its form with two multiplications; Gupta et al., "Deep learning with limited numerical precision" (2015).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MULTIPLIER_0, MULTIPLIER_1 = 0x21F0AAAD, 0x735A2D97
"""Multipliers of the finaliser; below 2³¹, so that they are int32 as they stand."""
START_0, START_1 = 0x9E3779B9, 0xBB67AE85
"""What the two key words start from."""
PAGE_BITS = 32
"""Pairs are numbered within pages of 2³² elements, so that a number is a non-negative int32; the page is in the key."""
PARAMETER, LATE = 3, 2
"""Parts of a tensor that are the parameter itself, and its momentum after late gradients; moments are parts 0 and 1."""
BUCKETS = 2**24 - 1
"""Number of the averages over ranks; the parts of tensors have the numbers below."""
_LOW = 0xFFFFFFFF


def random_bits(numel: int, *, seed: int, stream: int, offset: int = 0, device: torch.device | str) -> Tensor:
    """Return sixteen random bits for each of the elements ``offset ... offset + numel - 1`` of a stream.

    The elements of a slice are those of the whole: how a tensor is cut among devices or kernels does not matter.

    Args:
        numel: How many, at least 0.
        seed: The run's seed, ``0 <= seed < 2**63``.
        stream: Which sequence (a step and a tensor, say), ``0 <= stream < 2**63``.
        offset: First element, ``0 <= offset < 2**63 - numel``.
        device: Where to make them.

    Returns:
        Shape (numel,), dtype int32, uniform in [0, 2**16).
    """
    page, place = divmod(offset, 1 << PAGE_BITS)
    room = (1 << PAGE_BITS) - place
    if numel > room:
        head = random_bits(room, seed=seed, stream=stream, offset=offset, device=device)
        tail = random_bits(numel - room, seed=seed, stream=stream, offset=offset + room, device=device)
        return torch.cat([head, tail])
    key_0, key_1 = stream_key(seed, stream, page)
    # One word serves elements 2i and 2i + 1. The 4 elements from place 3 on are 3 | 4 5 | 6: they need the words of the
    # pairs 1, 2 and 3, of whose six halves the first and the last fall away.
    first, end = place >> 1, (place + numel + 1) >> 1
    words = torch.arange(end - first, dtype=torch.int32, device=device).add_(first)
    _finalise_(words.bitwise_xor_(_as_int32(key_0)))
    _finalise_(words.bitwise_xor_(_as_int32(key_1)))
    # The machines PyTorch runs on are little-endian: the low half lies first.
    halves = words.view(torch.int16)[place & 1 :][:numel]
    return halves.to(torch.int32).bitwise_and_(0xFFFF)


def stream_key(seed: int, stream: int, page: int = 0) -> tuple[int, int]:
    """Return the two key words of a page of a stream, each in [0, 2**32); computed on the host."""
    key_0, key_1 = START_0, START_1
    for word in (seed & _LOW, seed >> 32, stream & _LOW, stream >> 32, page):
        key_0, key_1 = _finalise(key_0 ^ word), _finalise(key_1 ^ word)
    return key_0, key_1


def round_stochastically(values: Tensor, *, seed: int, stream: int, offset: int = 0) -> Tensor:
    """Round to one of the two bf16 neighbours, unbiased.

    What bf16 can hold stays, NaN and ±Inf too. A finite value beyond ±3.39e38, the largest of bf16, becomes that or
    ±Inf with the probabilities that a further step of bf16 would have: the one case in which a step leaves the range.

    Args:
        values: fp32, any shape.
        seed: See ``random_bits``.
        stream: See ``random_bits``.
        offset: Place of the first value in its stream.

    Returns:
        bf16, same shape.

    Raises:
        TypeError: If ``values`` is not fp32.
    """
    if values.dtype != torch.float32:
        raise TypeError(f"round_stochastically needs torch.float32, got {values.dtype}")
    bits = random_bits(values.numel(), seed=seed, stream=stream, offset=offset, device=values.device)
    # A bf16 is the upper half of an fp32. Adding 16 random bits to the lower half carries into the upper one as often
    # as that half is large: 0x3F80_4000, a quarter of the way from 1 to the next bf16, is rounded up by the quarter of
    # all bits that are at least 0xC000.
    bits = bits.view(values.shape).add_(values.view(torch.int32)).bitwise_and_(-0x10000)
    # An Inf has no bits below the kept ones, so nothing carries; a NaN may have them and would become anything.
    return torch.where(values.isnan(), values, bits.view(torch.float32)).to(torch.bfloat16)


def part_number(tensor: int, part: int) -> int:
    """Return the number of a part of a tensor, below 2**24: the parameter of tensor 5 is 5 · 4 + 3 = 23."""
    return tensor * 4 + part


@dataclass(frozen=True)
class Rounding:
    """The choice of random bits to round states with: they follow from the time, the part, and the element."""

    seed: int
    time: int
    """Micro-batches so far, below 2**38."""

    def stream(self, number: int) -> int:
        """Return the stream of a part: the time lies above the 24 bits of ``number``.

        So no two parts and no two times share bits: part 23 at time 2 has stream 2 · 2²⁴ + 23.
        """
        return (self.time << 24) + number

    def store(self, target: Tensor, values: Tensor, *, number: int, offset: int = 0) -> None:
        """Write ``values`` [n] to ``target`` [n], rounded if that is bf16.

        Args:
            target: Elements ``offset ... offset + n - 1`` of a part.
            values: At least fp32.
            number: Number of the part.
            offset: See ``target``.
        """
        if target.dtype == torch.bfloat16:
            values = round_stochastically(values, seed=self.seed, stream=self.stream(number), offset=offset)
        target.copy_(values)


def _finalise(word: int) -> int:
    word = ((word ^ (word >> 16)) * MULTIPLIER_0) & _LOW
    word = ((word ^ (word >> 15)) * MULTIPLIER_1) & _LOW
    return word ^ (word >> 15)


def _finalise_(words: Tensor) -> None:
    """Apply ``_finalise`` to int32, whose products wrap; its shifts are arithmetic: the sign they bring is masked."""
    words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).mul_(MULTIPLIER_0)
    words.bitwise_xor_((words >> 15).bitwise_and_(0x1FFFF)).mul_(MULTIPLIER_1)
    words.bitwise_xor_((words >> 15).bitwise_and_(0x1FFFF))


def _as_int32(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
