"""MinHash: band keys that similar texts share with a known chance, and samples of n-grams to compare texts by.

The sample of a text is its ``SAMPLE_SIZE`` smallest distinct n-gram hashes; of a text with no more than those, all of
them. Two samples give the Jaccard similarity of the texts: exactly where both hold all, else that of a uniform sample
of the n-grams of both, with a standard error below 0.023 (0.020 at a similarity of 0.75).

Source: Broder, "On the resemblance and containment of documents" (1997); FineWeb, arXiv 2406.17557.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.counter_rng import Purpose, random_words
from kexue_train.shuffle.near.config import NearConfig
from kexue_train.shuffle.near.ngrams import Grams, iter_grams

SAMPLE_SIZE = 512
_CHUNK_GRAMS = 1024
"""So many n-grams are hashed at a time: the hashes of a chunk stay in the processor's cache."""
_SHIFT = np.uint64(32)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_NO_GRAM = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of n texts."""

    hashes: npt.NDArray[np.uint32]
    """Text after text; of each distinct and ascending."""
    bounds: npt.NDArray[np.int64]
    """Shape (n + 1,): those of text i are ``hashes[bounds[i]:bounds[i + 1]]``."""


@dataclass(frozen=True, slots=True)
class Signatures:
    """What is kept of n texts."""

    keys: npt.NDArray[np.uint64]
    """Shape (n, bands): two texts are compared if they share one. Those of texts without n-grams mean nothing."""
    samples: Samples


def sign(texts: pa.LargeBinaryArray, near: NearConfig, seed: int) -> Signatures:
    """Return the signatures of texts; each depends on its text, the settings and the seed alone."""
    multipliers, offsets = _permutations(seed, near.num_hashes)
    minima = np.full((near.num_hashes, len(texts)), _NO_GRAM, np.uint32)
    samples: list[npt.NDArray[np.uint32]] = []
    counts = np.zeros(len(texts), np.int64)
    for first, grams in iter_grams(texts, near.ngram):
        num_texts = len(grams.bounds) - 1
        _lower(minima[:, first : first + num_texts], grams, multipliers, offsets)
        hashes, sizes = _sample(grams)
        if counts[first]:  # a further part of a long text
            hashes = np.unique(np.concatenate([samples.pop(), hashes]))[:SAMPLE_SIZE]
            sizes = np.array([len(hashes)])
        samples.append(hashes)
        counts[first : first + num_texts] = sizes
    hashes = np.concatenate(samples) if samples else np.zeros(0, np.uint32)
    return Signatures(_band_keys(minima, near), Samples(hashes, np.concatenate([[0], np.cumsum(counts)])))


def _permutations(seed: int, num_hashes: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return the odd multipliers and the offsets of the hash functions x -> a·x + b modulo 2³², shape (h, 1) each."""
    words = random_words(seed, Purpose.MINHASH, 0, np.arange(num_hashes))
    multipliers, offsets = (words >> _SHIFT).astype(np.uint32)[:, :, None]
    return multipliers | np.uint32(1), offsets


def _lower(
    minima: npt.NDArray[np.uint32],
    grams: Grams,
    multipliers: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.uint32],
) -> None:
    """Lower ``minima``, of shape (h, n), to those of the n-grams."""
    hashes, bounds = grams.hashes, grams.bounds
    owners = np.flatnonzero(np.diff(bounds))  # texts that have n-grams
    starts = bounds[owners]
    if not len(owners):
        return
    columns = slice(None) if len(owners) == len(bounds) - 1 else owners
    lowest = np.ascontiguousarray(minima[:, columns])
    for begin in range(0, len(hashes), _CHUNK_GRAMS):
        end = min(begin + _CHUNK_GRAMS, len(hashes))
        first = int(np.searchsorted(starts, begin, side="right")) - 1
        stop = int(np.searchsorted(starts, end))
        hashed = multipliers * hashes[begin:end]
        hashed += offsets
        part = np.minimum.reduceat(hashed, np.maximum(starts[first:stop] - begin, 0), axis=1)
        np.minimum(lowest[:, first:stop], part, out=lowest[:, first:stop])
    minima[:, columns] = lowest


def _band_keys(minima: npt.NDArray[np.uint32], near: NearConfig) -> npt.NDArray[np.uint64]:
    """Hash the rows of each band, with the number of the band, to 64 bits."""
    banded = minima.reshape(near.bands, near.rows, -1)
    keys = np.zeros((near.bands, banded.shape[2]), np.uint64)
    keys += np.arange(1, near.bands + 1, dtype=np.uint64)[:, None] * np.uint64(0xD1B54A32D192ED03)
    for row in range(near.rows):
        keys ^= banded[:, row]
        keys *= _MULTIPLIER
        keys ^= keys >> _SHIFT
    keys *= np.uint64(0xD6E8FEB86659FD93)
    keys ^= keys >> _SHIFT
    return np.ascontiguousarray(keys.T)


def _sample(grams: Grams) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return the smallest distinct hashes of each text, and how many they are, shape (n,)."""
    sizes = np.diff(grams.bounds)
    owners = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)
    keys = (owners << _SHIFT) | grams.hashes
    keys.sort(kind="stable")  # text after text; half of the time of the default
    if len(keys):
        keys = keys[np.append(True, keys[1:] != keys[:-1])]
    owners = keys >> _SHIFT
    sizes = np.bincount(owners.astype(np.int64), minlength=len(sizes))
    ranks = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    hashes = keys[ranks < SAMPLE_SIZE].astype(np.uint32)
    return hashes, np.minimum(sizes, SAMPLE_SIZE)


def similarities(
    samples: Samples, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Return the Jaccard similarity of the texts ``left[i]`` and ``right[i]``, shape (p,); 0 if either has no n-gram.

    Where a sample is cut off at its largest hash, both are compared up to the lower of these: below it nothing of
    either text is missing.
    """
    limits = np.minimum(_limits(samples)[left], _limits(samples)[right])
    pairs, hashes = [], []
    for side in (left, right):
        sizes = np.diff(samples.bounds)[side]
        owners = np.repeat(np.arange(len(side)), sizes)
        places = np.arange(len(owners)) + np.repeat(samples.bounds[side] - (np.cumsum(sizes) - sizes), sizes)
        found = samples.hashes[places]
        is_known = found <= limits[owners]
        pairs.append(owners[is_known])
        hashes.append(found[is_known])
    keys = (np.concatenate(pairs).astype(np.uint64) << _SHIFT) | np.concatenate(hashes)
    keys.sort(kind="stable")  # merges two sorted halves; a tenth of the time of the default
    shared = np.bincount((keys[1:][keys[1:] == keys[:-1]] >> _SHIFT).astype(np.int64), minlength=len(left))
    together = sum(np.bincount(owners, minlength=len(left)) for owners in pairs) - shared
    return np.asarray(shared / np.maximum(together, 1), np.float64)


def _limits(samples: Samples) -> npt.NDArray[np.uint32]:
    sizes = np.diff(samples.bounds)
    limits = np.full(len(sizes), _NO_GRAM, np.uint32)
    is_cut = sizes == SAMPLE_SIZE
    limits[is_cut] = samples.hashes[samples.bounds[1:][is_cut] - 1]
    return limits
