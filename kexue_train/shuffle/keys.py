"""The random keys that a record is sorted by, and the hashes that prove that nothing was lost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from kexue_train.arrow_shards import column_bytes
from kexue_train.counter_rng import Purpose, random_words

Words = npt.NDArray[np.uint64]
"""Shape (2, n): the high and the low 64 bits of n numbers."""

_SLICE_ROWS = 8192
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def position_keys(seed: int, file_index: int, positions: npt.NDArray[np.uint64]) -> Words:
    """A key per position, shape (2, n); Philox is a bijection of the position, so no two records share a key."""
    return random_words(seed, Purpose.SHUFFLE, file_index, positions)


def content_keys(seed: int, hashes: Words) -> Words:
    """A key per text hash, shape (2, n): equal texts get equal keys, others do not, so copies meet in one place."""
    return random_words(seed, Purpose.SHUFFLE, hashes[0], hashes[1])


def hash_texts(texts: pa.Array) -> Words:
    """The xxh3_128 hash of each text's UTF-8 bytes, shape (2, n)."""
    # In slices, since the views of short texts take more memory than the texts.
    slices = (texts.slice(start, _SLICE_ROWS) for start in range(0, len(texts), _SLICE_ROWS))
    digests = b"".join(xxhash.xxh3_128_digest(view) for part in slices for view in column_bytes(part))
    return np.frombuffer(digests, ">u8").reshape(-1, 2).T.astype(np.uint64)


def sum_words(words: Words) -> int:
    """Sum of fewer than 2³² numbers modulo 2¹²⁸."""
    total = 0
    for half, shift in ((words[0], 64), (words[1], 0)):
        total += (int((half >> _SHIFT).sum()) << (shift + 32)) + (int((half & _LOW).sum()) << shift)
    return total % (1 << 128)


def to_integers(words: Words) -> list[int]:
    """Python integers of n numbers."""
    return [(high << 64) | low for high, low in zip(words[0].tolist(), words[1].tolist(), strict=True)]
