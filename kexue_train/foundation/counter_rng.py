"""Random numbers as a pure function of where they are used: the Philox4x32-10 counter-based generator, vectorised.

Every random choice of the data stages is ``philox(key, counter)``, the key from (seed, purpose), the counter from the
position of the thing decided. So nothing depends on the order of work, the number of workers, or a stream's state.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); checked against its published vectors.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_FEISTEL_ROUNDS = 8


class Purpose(IntEnum):
    """What a random number is for; keeps the streams of one seed apart. Never renumber: results depend on it."""

    SHUFFLE = 1
    NSP = 2
    PACKING = 3
    MASKING = 4
    ORDER = 5
    DROPOUT = 6
    INIT = 7
    SAMPLING = 8
    BLOCK_ORDER = 9
    MIXTURE = 10
    FINE_TUNING = 11
    RANDOM_VECTORS = 12
    REPLACEMENT = 13
    LABELLED_ROWS = 14
    TASK_ORDER = 15
    MINHASH = 16
    TRIAL = 17
    PARAPHRASE = 20
    FEW_SHOT_CONTROL = 31


def philox(
    counter: tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike], key: tuple[int, int]
) -> npt.NDArray[np.uint64]:
    """Return four 32-bit words per counter: shape (4, ...), dtype uint64 with values below 2³².

    Args:
        counter: Four words below 2³², scalars or arrays that broadcast to shape (...).
        key: Two words below 2³².
    """
    x0, x1, x2, x3 = (word.astype(np.uint64) for word in np.broadcast_arrays(*map(np.atleast_1d, counter)))
    for i in range(10):
        product_0, product_1 = x0 * _MULTIPLIER_0, x2 * _MULTIPLIER_1
        # In place: fresh arrays would double the time.
        x1 ^= product_1 >> _SHIFT
        x1 ^= np.uint64((key[0] + i * _WEYL_0) & 0xFFFFFFFF)
        x3 ^= product_0 >> _SHIFT
        x3 ^= np.uint64((key[1] + i * _WEYL_1) & 0xFFFFFFFF)
        product_0 &= _LOW
        product_1 &= _LOW
        x0, x1, x2, x3 = x1, product_1, x3, product_0
    return np.stack([x0, x1, x2, x3])


def random_words(seed: int, purpose: Purpose, stream: npt.ArrayLike, position: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """Return two independent uniform 64-bit words per (stream, position): shape (2, n), dtype uint64.

    Args:
        seed: The run's seed, ``0 <= seed < 2**32``.
        purpose: Separates uses of one seed.
        stream: Which sequence (a file, an epoch, a shard), below 2⁶⁴; scalar or (n,).
        position: Where in it (a byte offset, a row), below 2⁶⁴; scalar or (n,).
    """
    stream, position = np.asarray(stream, np.uint64), np.asarray(position, np.uint64)
    counter = (position & _LOW, position >> _SHIFT, stream & _LOW, stream >> _SHIFT)
    words = philox(counter, (seed & 0xFFFFFFFF, int(purpose)))
    return np.stack([(words[0] << _SHIFT) | words[1], (words[2] << _SHIFT) | words[3]])


def uniform(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Map 64-bit words to doubles in [0, 1), 53 random bits each; same shape."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def generator(seed: int, purpose: Purpose, *position: int) -> np.random.Generator:
    """Return a NumPy generator for choices that need a stream, seeded by (seed, purpose, position...)."""
    return np.random.default_rng([seed, int(purpose), *position])


def permute(
    positions: npt.NDArray[np.int64], size: int, seed: int, purpose: Purpose, stream: int
) -> npt.NDArray[np.int64]:
    """Return the images of ``positions`` under a random bijection of ``range(size)`` keyed by (seed, purpose, stream).

    A Feistel network on the smallest power of four that holds the range, walked until it falls among it (Black and
    Rogaway, "Ciphers with arbitrary finite domains", 2002): no state, however large the range.
    """
    half_bits = max(1, (max(1, size - 1).bit_length() + 1) // 2)
    result = _feistel(positions.astype(np.uint64), half_bits, seed, purpose, stream)
    # A bijection of the larger square, followed until it is back inside, is a bijection of what is inside.
    while (outside := np.flatnonzero(result >= size)).size:
        result[outside] = _feistel(result[outside], half_bits, seed, purpose, stream)
    return result.astype(np.int64)


def _feistel(
    values: npt.NDArray[np.uint64], half_bits: int, seed: int, purpose: Purpose, stream: int
) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for i in range(_FEISTEL_ROUNDS):
        word = philox((right, i, stream & 0xFFFFFFFF, stream >> 32), (seed & 0xFFFFFFFF, int(purpose)))[0]
        left, right = right, left ^ (word & mask)
    return (left << shift) | right
