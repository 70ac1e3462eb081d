"""Random bits as a hash of where they are used: the same numbers on a CPU, on a GPU and inside a kernel, no state.

For stochastic rounding and dropout only: fast, and even enough that no bias shows, but nothing more is claimed.
The order of data, masks and initial weights come from ``foundation.counter_rng`` (Philox) instead.

Two words made of (seed, stream) key a hash of the number of each pair of elements: two rounds of a 32-bit finaliser,
one word before each. The first element of a pair takes the low half of the result, the second the high half.

Source of the finaliser: Chris Wellons, "hash prospector" (github.com/skeeto/hash-prospector), the least biased of its
form with two multiplications.
"""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLIER_0, MULTIPLIER_1 = 0x21F0AAAD, 0x735A2D97
"""Of the finaliser; below 2³¹, so that they are int32 as they stand."""
START_0, START_1 = 0x9E3779B9, 0xBB67AE85
"""What the two key words start from."""
SEGMENT_BITS = 32
"""Pairs are numbered within segments of 2³² elements, so that a number is a non-negative int32; the rest is key."""
_LOW = 0xFFFFFFFF


def random_bits(numel: int, *, seed: int, stream: int, offset: int = 0, device: torch.device | str) -> Tensor:
    """Sixteen random bits for each of the elements ``offset ... offset + numel - 1`` of a stream.

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
    segment, place = divmod(offset, 1 << SEGMENT_BITS)
    room = (1 << SEGMENT_BITS) - place
    if numel > room:
        head = random_bits(room, seed=seed, stream=stream, offset=offset, device=device)
        tail = random_bits(numel - room, seed=seed, stream=stream, offset=offset + room, device=device)
        return torch.cat([head, tail])
    key_0, key_1 = stream_key(seed, stream, segment)
    first, end = place >> 1, (place + numel + 1) >> 1
    words = torch.arange(end - first, dtype=torch.int32, device=device).add_(first)
    _finalise_(words.bitwise_xor_(_as_int32(key_0)))
    _finalise_(words.bitwise_xor_(_as_int32(key_1)))
    # The machines PyTorch runs on are little-endian: the low half lies first.
    halves = words.view(torch.int16)[place & 1 :][:numel]
    return halves.to(torch.int32).bitwise_and_(0xFFFF)


def stream_key(seed: int, stream: int, segment: int = 0) -> tuple[int, int]:
    """The two key words of a stream's segment, each in [0, 2**32); computed on the host."""
    key_0, key_1 = START_0, START_1
    for word in (seed & _LOW, seed >> 32, stream & _LOW, stream >> 32, segment):
        key_0, key_1 = _finalise(key_0 ^ word), _finalise(key_1 ^ word)
    return key_0, key_1


def _finalise(word: int) -> int:
    word = ((word ^ (word >> 16)) * MULTIPLIER_0) & _LOW
    word = ((word ^ (word >> 15)) * MULTIPLIER_1) & _LOW
    return word ^ (word >> 15)


def _finalise_(words: Tensor) -> None:
    """The same on int32, whose products wrap; its shifts are arithmetic, so what they bring in is masked away."""
    words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF)).mul_(MULTIPLIER_0)
    words.bitwise_xor_((words >> 15).bitwise_and_(0x1FFFF)).mul_(MULTIPLIER_1)
    words.bitwise_xor_((words >> 15).bitwise_and_(0x1FFFF))


def _as_int32(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
