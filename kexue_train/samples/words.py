"""Which pieces begin a word: by WordPiece continuation, and in Chinese by segmented words over single characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import rjieba

# What BertNormalizer takes for Chinese characters (it puts each alone), as [first, last] code points.
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


def is_chinese(code_points: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    """Whether each code point is a Chinese character; same shape."""
    result = np.zeros(code_points.shape, np.bool_)
    for first, last in _CHINESE:
        result |= (code_points >= first) & (code_points <= last)
    return result


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """The code points of ``text``, one per character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def chinese_continuations(texts: Sequence[str], token_chars: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether each token is a Chinese character inside a segmented word, so that it shares the fate of the one before.

    Args:
        texts: Pieces of text; each is segmented alone.
        token_chars: (n,) offset of each token's first character in the joined ``texts``.
    """
    joined = "".join(texts)
    chinese = is_chinese(code_points(joined))
    inside = ~_word_starts(texts, len(joined))
    inside[1:] &= chinese[1:] & chinese[:-1]
    inside[:1] = False
    return inside[token_chars]


def _word_starts(texts: Sequence[str], num_chars: int) -> npt.NDArray[np.bool_]:
    """Whether a segmented word starts at each character of the joined ``texts``."""
    words = [rjieba.cut(text) for text in texts]
    lengths = np.fromiter(map(len, chain.from_iterable(words)), np.int64, count=sum(map(len, words)))
    if lengths.sum() != num_chars:
        raise RuntimeError(f"the segmenter returned {lengths.sum()} of {num_chars} characters")
    starts = np.zeros(num_chars, np.bool_)
    starts[np.cumsum(lengths[lengths > 0]) - lengths[lengths > 0]] = True
    return starts
