"""The characters a vocabulary starts from, counted from normalized text; a pure function of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from kexue_train.samples.words import code_points

_NUM_CODE_POINTS = 0x110000
_COVERAGE = 0.9998  # of the characters of the text; rarer ones become [UNK]


@dataclass(frozen=True)
class Alphabet:
    """Characters of a vocabulary, and those among them that also continue a word; both in order of code points."""

    characters: list[str]
    continuing: list[str]


@dataclass(frozen=True)
class CharacterCounts:
    """Occurrences by code point: (0x110000,) int64 each.

    Attributes:
        total: Of each character, white space left out.
        continuing: Of each character inside a word, not at its start.
    """

    total: npt.NDArray[np.int64]
    continuing: npt.NDArray[np.int64]

    def choose(self, *, max_pieces: int, min_frequency: int) -> Alphabet:
        """The most frequent characters that cover 99.98 % of the text, as far as ``max_pieces`` and frequency allow."""
        found = np.flatnonzero(self.total)
        ranked = found[np.lexsort((found, -self.total[found]))]
        counts = self.total[ranked]
        covering = int(np.searchsorted(np.cumsum(counts), _COVERAGE * counts.sum())) + 1
        pieces = np.cumsum(1 + (self.continuing[ranked] > 0))
        affordable = int(np.searchsorted(pieces, max_pieces, side="right"))
        frequent = int(np.count_nonzero(counts >= min_frequency))
        chosen = np.sort(ranked[: min(covering, affordable, frequent)])
        return Alphabet(
            [chr(point) for point in chosen], [chr(point) for point in chosen if self.continuing[point] > 0]
        )


def count_characters(blocks: Iterable[str]) -> CharacterCounts:
    """Count the characters of normalized text (lower-cased, Chinese characters between spaces, if so wished)."""
    total, continuing = np.zeros(_NUM_CODE_POINTS, np.int64), np.zeros(_NUM_CODE_POINTS, np.int64)
    space, border = _borders()
    for block in blocks:
        points = code_points(block)
        between = border[points]
        total += np.bincount(points[~space[points]], minlength=_NUM_CODE_POINTS)
        inside = ~between[1:] & ~between[:-1]
        continuing += np.bincount(points[1:][inside], minlength=_NUM_CODE_POINTS)
    return CharacterCounts(total, continuing)


@cache
def _borders() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """By code point: whether it is white space; whether it ends a word (white space or punctuation, as BERT has it)."""
    space, border = np.zeros(_NUM_CODE_POINTS, np.bool_), np.zeros(_NUM_CODE_POINTS, np.bool_)
    for point in range(_NUM_CODE_POINTS):
        character = chr(point)
        space[point] = character.isspace()
        border[point] = (
            space[point] or unicodedata.category(character).startswith("P") or (point < 128 and not character.isalnum())
        )
    return space, border
