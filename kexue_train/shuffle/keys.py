"""The random keys that rows are sorted by, and the hashes that prove that nothing was lost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from kexue_train.foundation.arrow_arrays import lengths_of
from kexue_train.foundation.counter_rng import Purpose, random_words
from kexue_train.shuffle.rows import cut_evenly

Words = npt.NDArray[np.uint64]
"""Shape (2, n): the high and the low 64 bits of n numbers."""

_SLICE_BYTES = 2**18  # of Python objects, so that they stay in the processor's cache
_VALUE_BYTES = 64  # what a Python object costs beside its bytes
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_COPY_SHIFT = np.uint64(32)


def position_keys(
    seed: int, file_index: int, positions: npt.NDArray[np.uint64], copy: npt.ArrayLike = 0
) -> npt.NDArray[np.uint64]:
    """Return a key for each record, shape (n,), from its position alone; ``copy``, () or (n,), numbers its copies."""
    stream = np.uint64(file_index) | (np.asarray(copy, np.uint64) << _COPY_SHIFT)
    keys: npt.NDArray[np.uint64] = random_words(seed, Purpose.SHUFFLE, stream, positions)[0]
    return keys


def content_keys(seed: int, hashes: Words, copy: int = 0) -> npt.NDArray[np.uint64]:
    """Return a key for each text hash, shape (n,): equal texts get equal keys, so they meet in one bucket."""
    keys: npt.NDArray[np.uint64] = random_words(seed, Purpose.SHUFFLE, hashes[0], hashes[1] + np.uint64(copy))[0]
    return keys


def bucket_of(keys: npt.NDArray[np.uint64], num_buckets: int) -> npt.NDArray[np.int64]:
    """Return the bucket of each key, shape (n,): B buckets (at most 2³²) are equal ranges of the keys' upper 32 bits.

    With B = 3, a key whose upper half is 0x80000000 (half of the range) gets bucket 0x80000000 · 3 >> 32 = 1.
    """
    return (((keys >> _SHIFT) * np.uint64(num_buckets)) >> _SHIFT).astype(np.int64)


def bucket_bounds(bucket: int, num_buckets: int) -> tuple[int, int]:
    """Return (low, high): the keys of a bucket are exactly those in ``[low, high)``."""
    low, high = (-(-edge * (1 << 32) // num_buckets) << 32 for edge in (bucket, bucket + 1))
    return low, high


def hash_rows(texts: pa.LargeBinaryArray, extras: pa.LargeBinaryArray | None = None) -> Words:
    """Return the xxh3_128 hash of each text's bytes, shape (2, n); with ``extras``, of text, newline and extras."""
    digests: list[bytes] = []
    # In slices, since a Python object for every value takes memory.
    for start, stop in cut_evenly(lengths_of(texts) + _VALUE_BYTES, _SLICE_BYTES):
        values = _values(texts, start, stop)
        if extras is not None:
            values = [b"%b\n%b" % pair for pair in zip(values, _values(extras, start, stop), strict=True)]
        digests.extend(map(xxhash.xxh3_128_digest, values))
    return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).T.astype(np.uint64)


def sum_words(words: Words) -> int:
    """Return the sum of fewer than 2³² numbers modulo 2¹²⁸."""
    total = 0
    for half, shift in ((words[0], 64), (words[1], 0)):
        total += (int((half >> _SHIFT).sum()) << (shift + 32)) + (int((half & _LOW).sum()) << shift)
    return total % (1 << 128)


def distinct_hashes(contents: Words) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the first of each group of equal hashes, ascending, and for each hash which of these it equals."""
    order = np.lexsort((contents[1], contents[0]))  # stable
    high, low = contents[0][order], contents[1][order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    firsts = order[is_first]
    by_place = np.argsort(firsts)
    rank = np.empty(len(firsts), np.int64)
    rank[by_place] = np.arange(len(firsts))
    which = np.empty(len(order), np.int64)
    which[order] = rank[np.cumsum(is_first) - 1]
    return firsts[by_place], which


def _values(array: pa.LargeBinaryArray, start: int, stop: int) -> list[bytes]:
    values: list[bytes] = array.slice(start, stop - start).to_pylist()
    return values
