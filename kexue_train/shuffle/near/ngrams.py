"""The n-grams of texts as 32-bit hashes, by one rule for all languages, without a Python object for any of them.

A token is a run of letters, marks and digits in lower case; in scripts that are written without spaces each character
is a token. All else separates. An n-gram is n tokens that follow each other; a text with fewer has one n-gram, of all
its tokens, and a text without a token has none. The hashes depend on the text alone.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.arrow_arrays import data_of, lengths_of, offsets_of
from kexue_train.shuffle.rows import cut_evenly

Words = npt.NDArray[np.uint64]

PIECE_BYTES = 2**18
"""Texts are worked on so many bytes at a time, which stay in the processor's cache; longer ones in pieces."""
_LOOK_BACK = 4096
"""A piece of a long text ends behind a separator among its last bytes, if there is one."""
_RUN, _ALONE = np.uint64(1), np.uint64(2)
_KIND = np.uint64(3)
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2⁶⁴
_SHIFT = np.uint64(32)
_WITHOUT_SPACES = (
    slice(0x0E00, 0x1000),  # Thai, Lao, Tibetan
    slice(0x1000, 0x10A0),  # Burmese
    slice(0x1780, 0x1800),  # Khmer
    slice(0x3005, 0x3008),
    slice(0x3040, 0x3130),  # kana, Bopomofo
    slice(0x31A0, 0x3200),
    slice(0x3400, 0x4DC0),
    slice(0x4E00, 0xA000),
    slice(0xF900, 0xFB00),
    slice(0x20000, 0x40000),
)
_NEWER_SYMBOLS = (slice(0x2000, 0x2C00), slice(0x2E00, 0x3000), slice(0xFE10, 0xFE20), slice(0x1F000, 0x20000))


@dataclass(frozen=True, slots=True)
class Grams:
    """The n-grams of n texts."""

    hashes: npt.NDArray[np.uint32]
    """Text after text, in the order of the text; one that occurs twice stands twice."""
    bounds: npt.NDArray[np.int64]
    """Shape (n + 1,): those of text i are ``hashes[bounds[i]:bounds[i + 1]]``."""


def iter_grams(texts: pa.LargeBinaryArray, length: int) -> Iterator[tuple[int, Grams]]:
    """Yield (number of the first text, the n-grams of it and the following ones), a few hundred kB of text at a time.

    A long text comes in several parts, one after the other, each with the number of that text.
    """
    offsets = offsets_of(texts)
    data = np.frombuffer(data_of(texts), np.uint8)
    for start, stop in cut_evenly(lengths_of(texts), PIECE_BYTES):
        if stop - start == 1 and offsets[stop] - offsets[start] > 2 * PIECE_BYTES:
            for grams in _grams_of_long_text(data[offsets[start] : offsets[stop]], length):
                yield start, grams
            continue
        bounds = offsets[start : stop + 1] - offsets[start]
        tokens, token_bounds = _tokens(data[offsets[start] : offsets[stop]], bounds)
        yield start, _join(tokens, token_bounds, length)


def _grams_of_long_text(data: npt.NDArray[np.uint8], length: int) -> Iterator[Grams]:
    carried = np.zeros(0, np.uint64)  # the last n - 1 tokens begin n-grams that end in the next piece
    is_short = True
    for start, end in _cut_long(data):
        tokens, _ = _tokens(data[start:end], np.array([0, end - start]))
        carried = np.concatenate([carried, tokens])
        if len(carried) >= length:
            yield _join(carried, np.array([0, len(carried)]), length)
            carried = carried[len(carried) - length + 1 :]
            is_short = False
    if is_short and len(carried):
        yield _join(carried, np.array([0, len(carried)]), length)


def _cut_long(data: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Yield pieces of a text; none begins within a character, nor within a word unless that is very long."""
    start = 0
    while start < len(data):
        end = min(start + PIECE_BYTES, len(data))
        if end < len(data):
            tail = data[end - _LOOK_BACK : end]
            spaces = np.flatnonzero(tail <= ord(" "))
            if len(spaces):
                end += int(spaces[-1]) + 1 - _LOOK_BACK
            else:
                while (data[end] & 0xC0) == 0x80 and end > start + PIECE_BYTES - 4:
                    end -= 1
        yield start, end
        start = end


def _tokens(data: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]) -> tuple[Words, npt.NDArray[np.int64]]:
    """Return the hashes of all tokens, and bounds of shape (n + 1,): where those of each text begin."""
    codes, edges = _code_points(data, bounds)
    values = _char_values().take(codes, mode="clip")
    kinds = values & _KIND
    is_run, is_start = kinds == _RUN, kinds == _ALONE
    begins = is_run.copy()
    begins[1:] &= ~is_run[:-1]
    firsts = edges[:-1][edges[:-1] < len(codes)]
    begins[firsts] = is_run[firsts]  # a token ends with its text
    starts = np.flatnonzero(begins | is_start)
    token_bounds = np.searchsorted(starts, edges)
    if not len(starts):
        return np.zeros(0, np.uint64), token_bounds
    # A token's hash is the sum of value · baseⁱ, i from its first character on. Separators have the value 0.
    powers, inverses = _powers(len(codes))
    values *= powers[: len(values)]
    tokens: Words = np.add.reduceat(values, starts)
    tokens *= inverses[starts]
    tokens ^= tokens >> _SHIFT
    tokens *= np.uint64(0xD6E8FEB86659FD93)
    tokens ^= tokens >> _SHIFT
    return tokens, token_bounds


def _join(tokens: Words, bounds: npt.NDArray[np.int64], length: int) -> Grams:
    """Join the tokens of each text to n-grams: a multilinear hash, whose high half is the good one."""
    factors = _factors(length)
    padded = np.concatenate([tokens, np.zeros(length - 1, np.uint64)])
    sums = padded[: len(tokens)] * factors[0]
    for place in range(1, length):
        sums += padded[place : place + len(tokens)] * factors[place]
    sizes = np.diff(bounds)
    counts = np.where(sizes >= length, sizes - length + 1, np.minimum(sizes, 1))
    keep = np.ones(len(tokens), bool)
    ends, is_short = bounds[1:][sizes >= length], (sizes > 0) & (sizes < length)
    firsts, held = bounds[:-1][is_short], sizes[is_short]
    sums[firsts] = factors[length] * held.astype(np.uint64)
    for place in range(length - 1):
        among = firsts[held > place]
        sums[among] += tokens[among + place] * factors[place]
        keep[ends - place - 1] = False
        keep[among + place] = place == 0
    hashes = (sums[keep] >> _SHIFT).astype(np.uint32)
    return Grams(hashes, np.concatenate([[0], np.cumsum(counts)]))


def _code_points(
    data: npt.NDArray[np.uint8], bounds: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return the code points of all texts and the bounds of each; bytes that are not UTF-8 count as one separator."""
    raw = data.tobytes()
    try:
        codes = np.frombuffer(raw.decode("utf-8").encode("utf-32-le"), "<u4")
        ends = np.concatenate([[0], np.cumsum((data & 0xC0) != 0x80)])
        if all((data[bounds[1:-1][bounds[1:-1] < len(data)]] & 0xC0) != 0x80):  # no text begins within a character
            return codes, ends[bounds]
    except UnicodeDecodeError:
        pass
    texts = [raw[start:end].decode("utf-8", "replace") for start, end in itertools.pairwise(bounds)]
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    return codes, np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)


@functools.cache
def _char_values() -> Words:
    """Return for each code point a random number of which the two lowest bits say its kind; 0 for a separator.

    By Unicode 3.2, which no Python changes; newer characters count as letters unless their block holds symbols.
    """
    names = np.array([unicodedata.ucd_3_2_0.category(chr(code)) for code in range(0x40000)])
    is_part = np.isin(names.astype("U1"), ["L", "M", "N"])
    is_newer = names == "Cn"
    for block in _NEWER_SYMBOLS:
        is_newer[block] = False
    kinds = np.zeros(0x110000, np.uint64)
    kinds[np.flatnonzero(is_part | is_newer)] = _RUN
    for block in _WITHOUT_SPACES:
        kinds[block] = np.where(kinds[block] > 0, _ALONE, kinds[block])
    folded = np.arange(0x110000, dtype=np.uint64)
    for code in np.flatnonzero(np.isin(names, ["Lu", "Lt"])).tolist():
        lower = chr(code).lower()
        if len(lower) == 1:
            folded[code] = ord(lower)
    mixed = (folded + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> _SHIFT
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(29)
    return np.where(kinds > 0, (mixed & ~_KIND) | kinds, np.uint64(0))


@functools.lru_cache(maxsize=1)
def _power_tables(size: int) -> tuple[Words, Words]:
    inverse = pow(_BASE, -1, 2**64)
    tables = []
    for base in (_BASE, inverse):
        table = np.full(size, base, np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]


def _powers(size: int) -> tuple[Words, Words]:
    """Return the powers of the base, and of its inverse, from 0 to at least ``size`` - 1."""
    return _power_tables(max(4 * PIECE_BYTES, 1 << size.bit_length()))


@functools.cache
def _factors(length: int) -> Words:
    words = np.arange(1, length + 2, dtype=np.uint64) * np.uint64(0xA24BAED4963EE407)
    words ^= words >> np.uint64(31)
    words *= np.uint64(0x9FB21C651E98DF25)
    words ^= words >> np.uint64(28)
    return words | np.uint64(1)
