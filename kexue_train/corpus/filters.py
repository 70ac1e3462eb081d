"""Drops documents by length and by measures of quality that ask for no language and no words.

A measure counts characters or bytes, so Chinese and English are judged alike. Every result is exact, or rests on
constants of this file: it is the same on every machine and with every version of Python, NumPy and Arrow.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.corpus.config import FilterConfig
from kexue_train.corpus.published_filters import RULES, published_reason
from kexue_train.corpus.text_view import TextView
from kexue_train.foundation.arrow_arrays import to_arrow

HEAD_CHARS = 2**20
"""Shares are measured on so many characters from the beginning: it bounds memory, and makes books comparable."""
RUN_CHARS = 40
"""Length from which a run without white space counts; no common word of any language in Latin letters is so long."""
GRAM_BYTES = 32
"""Length of a repeat. In bytes, the share repeated has the same spread in Chinese and English Wikipedia (median 0 in
both, 95 % below 0.03 and 0.02); in characters it differs."""

_PIECE_BYTES = 2**18  # what is worked on at a time stays in the cache
_HASH_BITS = 48  # fewer than 2**16 documents of GRAM_BYTES lie in a piece, so their numbers fit in the other 16
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93)  # odd, well mixed
_IGNORED, _OTHER, _LETTER = 0, 1, 2
_CONTROL_SPACE = slice(0x09, 0x0E)
_VARIATION_SELECTORS = (slice(0xFE00, 0xFE10), slice(0xE0100, 0xE01F0))
_NEWER_SYMBOLS = (
    slice(0x2000, 0x2C00),  # punctuation, currencies, arrows, mathematics, dingbats
    slice(0x2E00, 0x3000),
    slice(0xFE10, 0xFE20),
    slice(0x1F000, 0x20000),  # emoji
)


def drop_reasons(texts: pa.LargeStringArray, rules: FilterConfig) -> npt.NDArray[np.uint8]:
    """Say which rule drops each text; a text is judged alone, whatever its neighbours.

    Args:
        texts: n valid UTF-8 texts without nulls.
        rules: Cheap ones come first; a later one sees only what is left. One that means nothing for a text (no visible
            character, fewer than two stretches of 32 bytes) keeps it.

    Returns:
        Shape (n,): 0 to keep the text, else 1 + the index in ``REASONS`` of the first rule that drops it.
    """
    reasons = np.zeros(len(texts), np.uint8)
    if rules.is_active and len(texts):
        _, bounds = _bytes_of(texts)
        starts = np.unique(np.searchsorted(bounds[:-1], np.arange(0, bounds[-1] + 1, _PIECE_BYTES)))
        for start, end in pairwise([*starts, len(texts)]):
            reasons[start:end] = _piece_reasons(texts.slice(start, end - start), rules)
    return reasons


def _piece_reasons(texts: pa.LargeStringArray, rules: FilterConfig) -> npt.NDArray[np.uint8]:
    reasons = np.zeros(len(texts), np.uint8)
    sizes = pc.binary_length(texts).to_numpy()
    for number, rule in enumerate(_RULES, 1):
        limit = getattr(rules, rule.field)
        left = np.flatnonzero((reasons == 0) & (sizes >= rule.min_bytes))
        if limit is None or not len(left):
            continue
        part = texts if len(left) == len(texts) else texts.take(to_arrow(left))
        if rule.is_share and sizes[left].max() > HEAD_CHARS:
            part = pc.utf8_slice_codeunits(part, 0, HEAD_CHARS)
        values = rule.measure(part)
        reasons[left[values < limit if rule.is_lower_limit else values > limit]] = number
    if rules.published and not reasons.all():
        _judge_by_published(texts, rules, reasons)
    return reasons


def _judge_by_published(texts: pa.LargeStringArray, rules: FilterConfig, reasons: npt.NDArray[np.uint8]) -> None:
    """Write into ``reasons`` the first rule of the published filters that drops a text."""
    view = TextView(pc.utf8_slice_codeunits(texts, 0, HEAD_CHARS))
    for number, rule in enumerate(RULES, 1 + len(_RULES)):
        if rule.filter in rules.published:
            reasons[(reasons == 0) & rule.drops(view)] = number


def _num_chars(texts: pa.LargeStringArray) -> npt.NDArray[np.int64]:
    return np.asarray(pc.utf8_length(texts), np.int64)


def _letter_share(texts: pa.LargeStringArray) -> npt.NDArray[np.float64]:
    data, _ = _bytes_of(texts)
    codes = np.frombuffer(str(data.data, "utf-8").encode("utf-32-le"), "<u4")
    kinds = _char_kinds().take(codes, mode="clip")
    lengths = _num_chars(texts)
    starts = np.cumsum(lengths) - lengths
    letters = np.add.reduceat(kinds == _LETTER, starts, dtype=np.int64)
    visible = np.add.reduceat(kinds != _IGNORED, starts, dtype=np.int64)
    return np.where(visible > 0, letters / np.maximum(visible, 1), 1.0)


@functools.cache
def _char_kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of each code point by Unicode 3.2, which no Python changes; newer ones go by their block.

    Letters with their marks (Indic vowel signs are marks) are letters; white space, joiners and variation selectors are
    ignored.
    """
    categories = np.array([unicodedata.ucd_3_2_0.category(chr(code)) for code in range(0x40000)])
    is_newer_letter = categories == "Cn"
    for block in _NEWER_SYMBOLS:
        is_newer_letter[block] = False
    kinds = np.full(0x110000, _OTHER, np.uint8)
    majors = categories.astype("U1")
    kinds[np.flatnonzero(np.isin(majors, ["L", "M"]) | is_newer_letter)] = _LETTER
    kinds[np.flatnonzero((majors == "Z") | (categories == "Cf"))] = _IGNORED
    for block in (_CONTROL_SPACE, *_VARIATION_SELECTORS):
        kinds[block] = _IGNORED
    return kinds


def _unbroken_share(texts: pa.LargeStringArray) -> npt.NDArray[np.float64]:
    data, bounds = _bytes_of(texts)
    breaks = (data <= ord(" ")) | (data > ord("~"))
    edges = np.append(breaks, True)
    edges[bounds] = True  # a run ends with its document
    at = np.flatnonzero(edges)
    runs = np.diff(at) - breaks[at[:-1]]  # the byte at a break belongs to no run
    long = np.flatnonzero(runs >= RUN_CHARS)
    owners = np.searchsorted(bounds, at[long], side="right") - 1
    return np.bincount(owners, runs[long], minlength=len(texts)) / np.diff(bounds)


def _repeated_line_share(texts: pa.LargeStringArray) -> npt.NDArray[np.float64]:
    split = pc.split_pattern(texts, "\n")
    lines = pc.ascii_trim_whitespace(split.flatten())
    owners = np.repeat(np.arange(len(texts)), split.value_lengths())
    codes = lines.dictionary_encode().indices.to_numpy()
    _, first = np.unique(owners * len(lines) + codes, return_index=True)
    lengths = _num_chars(lines)
    total = np.bincount(owners, lengths, minlength=len(texts))
    return (total - np.bincount(owners[first], lengths[first], minlength=len(texts))) / np.maximum(total, 1)


def _repetition(texts: pa.LargeStringArray) -> npt.NDArray[np.float64]:
    data, bounds = _bytes_of(texts)
    keys = np.zeros(len(data) - GRAM_BYTES + 1, np.uint64)
    for word, multiplier in enumerate(_MULTIPLIERS):  # a multilinear hash of the four words at each byte
        keys += np.ndarray(keys.shape, "<u8", data.data, 8 * word, (1,)) * np.uint64(multiplier)
    keys >>= np.uint64(64 - _HASH_BITS)  # its high bits are the good ones
    keys = np.delete(keys, bounds[1:-1, None] - np.arange(1, GRAM_BYTES))  # these reach into the next document
    counts: npt.NDArray[np.int64] = np.diff(bounds) - GRAM_BYTES + 1
    keys |= np.repeat(np.arange(len(texts), dtype=np.uint64) << np.uint64(_HASH_BITS), counts)
    keys.sort()
    is_repeat = np.append(False, keys[1:] == keys[:-1])
    repeats: npt.NDArray[np.int64] = np.add.reduceat(is_repeat, np.cumsum(counts) - counts, dtype=np.int64)
    return repeats / counts


def _bytes_of(texts: pa.LargeStringArray) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the UTF-8 of all n texts and the bounds, shape (n + 1,), of each in it."""
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]], bounds - bounds[0]


class _Rule(NamedTuple):
    field: str
    reason: str
    measure: Callable[[pa.LargeStringArray], npt.NDArray[np.int64] | npt.NDArray[np.float64]]
    min_bytes: int
    """The measure means nothing for a shorter text."""
    is_share: bool = True
    is_lower_limit: bool = False


_RULES = (
    _Rule("min_chars", "shorter than min_chars", _num_chars, 0, is_share=False, is_lower_limit=True),
    _Rule("max_chars", "longer than max_chars", _num_chars, 0, is_share=False),
    _Rule("min_letter_share", "letters below min_letter_share", _letter_share, 1, is_lower_limit=True),
    _Rule("max_unbroken_share", "unbroken runs above max_unbroken_share", _unbroken_share, RUN_CHARS),
    _Rule("max_repeated_line_share", "repeated lines above max_repeated_line_share", _repeated_line_share, 2),
    _Rule("max_repetition", "repetition above max_repetition", _repetition, GRAM_BYTES + 1),
)
REASONS: tuple[str, ...] = (*(rule.reason for rule in _RULES), *map(published_reason, RULES))
"""What the numbers of ``drop_reasons`` mean, from 1 on."""
