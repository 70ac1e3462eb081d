"""Chinese words over single characters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers.normalizers import BertNormalizer

Segment = Callable[[str], list[str]]
"""Cuts a text into words; joined they are the text."""

# What BertNormalizer takes for Chinese characters, as [first, last] code points.
_CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


@cache
def chinese_characters() -> npt.NDArray[np.bool_]:
    """Whether each code point is a Chinese character to BERT, always a word of its own: (0x110000,) bool, constant."""
    points = np.concatenate([np.arange(first, last + 1) for first, last in _CHINESE])
    # The normalizer drops those that its Unicode tables lack.
    normalized = BertNormalizer().normalize_str("a".join(map(chr, points.tolist()))).split("a")
    table = np.zeros(0x110000, np.bool_)
    table[points] = [bool(character.strip()) for character in normalized]
    return table


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The code points of ``text``, one per character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def continuations(texts: Sequence[str], segment: Segment) -> npt.NDArray[np.bool_]:
    """For every Chinese character of ``texts`` in order: whether its word also holds the Chinese character before it.

    Each text is segmented alone.
    """
    points = code_points("".join(texts))
    words = [segment(text) for text in texts]
    lengths = np.fromiter(map(len, chain.from_iterable(words)), np.int64, count=sum(map(len, words)))
    if lengths.sum() != len(points):
        raise RuntimeError(f"the segmenter returned {lengths.sum()} of {len(points)} characters")
    inside = np.ones(len(points), np.bool_)
    inside[(np.cumsum(lengths) - lengths)[lengths > 0]] = False
    chinese = chinese_characters()[points]
    inside[1:] &= chinese[:-1]
    return inside[chinese]
