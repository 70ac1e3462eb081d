"""Characters, words, lines and paragraphs of several texts as flat arrays, for rules that count them.

A word is a run of characters without white space. A line ends at a newline; a paragraph at an empty line. Blank lines
and paragraphs count as none.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

_LETTER, _SPACE, _UNSPACED = 1, 2, 4
_WITHOUT_SPACES = (
    slice(0x0E00, 0x10A0),
    slice(0x1780, 0x1800),
    slice(0x3005, 0x3130),
    slice(0x31A0, 0x3200),
    slice(0x3400, 0x4DC0),
    slice(0x4E00, 0xA000),
    slice(0xF900, 0xFB00),
    slice(0x20000, 0x40000),
)
"""Thai, Lao, Tibetan, Burmese, Khmer, kana, Bopomofo, ideographs: words are not set apart."""
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2⁶⁴
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Spans:
    """Stretches of the texts, in order; none crosses from one text to the next, none is empty."""

    starts: Counts
    """Number of the first character among those of all texts."""
    ends: Counts
    owners: Counts
    """Number of the text of each."""
    hashes: Hashes
    """Equal for equal stretches."""
    num_texts: int

    @property
    def lengths(self) -> Counts:
        """Characters of each."""
        return self.ends - self.starts

    @cached_property
    def numbers(self) -> Counts:
        """How many each text has."""
        return np.bincount(self.owners, minlength=self.num_texts)

    @cached_property
    def chars(self) -> Counts:
        """Characters of all of a text together."""
        return self.sum(self.lengths)

    @cached_property
    def is_repeat(self) -> Bools:
        """Which stood before in the same text."""
        return repeats(self.hashes, self.owners)

    def sum(self, values: npt.NDArray[Any]) -> Counts:
        """Add the values of the spans of each text."""
        return np.bincount(self.owners, values, self.num_texts).astype(np.int64)

    def share(self, which: Bools) -> npt.NDArray[np.float64]:
        """Return the share of the spans of each text; 0 where there are none."""
        return self.sum(which) / np.maximum(self.numbers, 1)

    def char_share(self, which: Bools) -> npt.NDArray[np.float64]:
        """Return the share of the characters of each text's spans; 0 where there are none."""
        return self.sum(self.lengths * which) / np.maximum(self.chars, 1)


class TextView:
    """Some texts as arrays; each is made when it is asked for.

    Args:
        texts: n valid UTF-8 texts without nulls, a few hundred kB together: there are 30 bytes per character here.
    """

    def __init__(self, texts: pa.LargeStringArray) -> None:
        self.texts, self.num_texts = texts, len(texts)
        joined = "".join(texts.to_pylist())
        self.codes: npt.NDArray[np.uint32] = np.frombuffer(joined.encode("utf-32-le"), "<u4")
        lengths = np.asarray(pc.utf8_length(texts), np.int64)
        self.bounds: Counts = np.concatenate([[0], np.cumsum(lengths)])
        """Shape (n + 1,): the characters of text i are ``codes[bounds[i]:bounds[i + 1]]``."""

    @cached_property
    def _kinds(self) -> npt.NDArray[np.uint8]:
        return _char_kinds().take(self.codes, mode="clip")

    @cached_property
    def begins_text(self) -> Bools:
        """Which characters are the first of a text."""
        begins = np.zeros(len(self.codes) + 1, bool)
        begins[self.bounds] = True
        return begins[:-1]

    @cached_property
    def words(self) -> Spans:
        """The words."""
        return self._runs((self._kinds & _SPACE) == 0)

    @cached_property
    def lines(self) -> Spans:
        """The lines, without white space around them."""
        return self._trimmed(self.codes != ord("\n"))

    @cached_property
    def paragraphs(self) -> Spans:
        """The paragraphs, without white space around them."""
        is_newline = self.codes == ord("\n")
        is_part = np.ones(len(self.codes), bool)
        is_part[:-1] &= ~(is_newline[:-1] & is_newline[1:])
        is_part[1:] &= ~(is_newline[:-1] & is_newline[1:])
        return self._trimmed(is_part)

    @cached_property
    def is_unspaced(self) -> Bools:
        """Which texts have most of their letters in scripts that do not set words apart."""
        letters = self._per_text((self._kinds & _LETTER) > 0)
        return 2 * self._per_text((self._kinds & (_LETTER | _UNSPACED)) == (_LETTER | _UNSPACED)) > letters

    @cached_property
    def word_has_letter(self) -> Bools:
        """Which words have a letter."""
        return self.count_in(self.words, (self._kinds & _LETTER) > 0) > 0

    @cached_property
    def lower_hashes(self) -> Hashes:
        """Hashes of the words in lower case, without punctuation at their ends."""
        words = self.words
        is_letter = (self._kinds & _LETTER) > 0
        before = np.concatenate([[0], np.cumsum(is_letter)])
        position = np.flatnonzero(is_letter)
        first = position.take(before[words.starts], mode="clip") if len(position) else words.starts
        last = position.take(np.maximum(before[words.ends] - 1, 0), mode="clip") if len(position) else words.starts
        has = self.word_has_letter
        starts, ends = np.where(has, first, words.starts), np.where(has, last + 1, words.ends)
        return hash_spans(_lower().take(self.codes, mode="clip"), starts, ends)

    def count(self, which: Bools) -> Counts:
        """Count characters of each text."""
        return self._per_text(which)

    def last_chars(self, spans: Spans) -> npt.NDArray[np.uint32]:
        """Return the last character of each span."""
        return self.codes[spans.ends - 1]

    def first_chars(self, spans: Spans) -> npt.NDArray[np.uint32]:
        """Return the first character of each span."""
        return self.codes[spans.starts]

    def count_in(self, spans: Spans, which: Bools) -> Counts:
        """Count the characters ``which`` in each span."""
        before: Counts = np.concatenate([[0], np.cumsum(which)])
        counts: Counts = before[spans.ends] - before[spans.starts]
        return counts

    def grams(self, length: int) -> tuple[Hashes, Counts]:
        """Return the hashes of all runs of ``length`` words of a text, and the number of the first word of each."""
        hashes, owners = self.words.hashes, self.words.owners
        count = max(len(hashes) - length + 1, 0)
        first = np.flatnonzero(owners[:count] == owners[length - 1 : length - 1 + count])
        joined = np.zeros(len(first), np.uint64)
        for place in range(length):
            joined = joined * np.uint64(_BASE) + hashes[first + place]
        return mixed(joined), first

    def _per_text(self, which: Bools) -> Counts:
        before: Counts = np.concatenate([[0], np.cumsum(which)])
        counts: Counts = before[self.bounds[1:]] - before[self.bounds[:-1]]
        return counts

    def _runs(self, is_part: Bools) -> Spans:
        """Return the longest stretches of characters that are parts, cut where texts begin."""
        begins_text = np.append(self.begins_text, True)
        padded = np.concatenate([[False], is_part, [False]])
        starts = np.flatnonzero(padded[1:-1] & (~padded[:-2] | begins_text[:-1]))
        ends = np.flatnonzero(padded[1:-1] & (~padded[2:] | begins_text[1:])) + 1
        return self._spans(starts, ends)

    def _trimmed(self, is_part: Bools) -> Spans:
        """Return the stretches of parts without white space around them, and without those of nothing else."""
        runs = self._runs(is_part)
        is_visible = (self._kinds & _SPACE) == 0
        before = np.concatenate([[0], np.cumsum(is_visible)])
        some = before[runs.ends] > before[runs.starts]
        position = np.flatnonzero(is_visible)
        starts, ends = runs.starts[some], runs.ends[some]
        if not len(starts):
            return self._spans(starts, ends)
        return self._spans(position[before[starts]], position[before[ends] - 1] + 1)

    def _spans(self, starts: Counts, ends: Counts) -> Spans:
        owners = np.searchsorted(self.bounds, starts, "right") - 1
        return Spans(starts, ends, owners, hash_spans(self.codes, starts, ends), self.num_texts)


def repeats(hashes: Hashes, owners: Counts) -> Bools:
    """Return which hashes stood before in the same text."""
    keys = mixed(hashes + mixed(owners.astype(np.uint64) + np.uint64(1)))
    order = np.argsort(keys, kind="stable")
    is_repeat = np.zeros(len(keys), bool)
    is_repeat[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return is_repeat


def hash_spans(codes: npt.NDArray[np.uint32], starts: Counts, ends: Counts) -> Hashes:
    """Return a hash of the characters of each span: Σ value(code) · baseⁱ, i from its first character on, mixed.

    The sum is a difference of two prefix sums modulo 2⁶⁴, divided by the power of the base at the first character.
    """
    powers, inverses = _powers(len(codes) + 1)
    values = mixed(codes.astype(np.uint64) + np.uint64(1))
    sums = np.concatenate([np.zeros(1, np.uint64), np.add.accumulate(values * powers[: len(codes)])])
    return mixed((sums[ends] - sums[starts]) * inverses[starts] + (ends - starts).astype(np.uint64))


def mixed(values: Hashes) -> Hashes:
    """Return a bijection of 64 bits, so that similar numbers become unlike ones."""
    values = (values ^ (values >> _HALF)) * _MIX
    values = (values ^ (values >> _HALF)) * _MIX
    result: Hashes = values ^ (values >> _HALF)
    return result


def hash_words(*words: str) -> Hashes:
    """Return the hashes of whole words, as ``TextView.lower_hashes`` has them."""
    return np.concatenate([TextView(pa.array([word], pa.large_string())).lower_hashes for word in words])


@functools.cache
def _char_kinds() -> npt.NDArray[np.uint8]:
    """Return the kind of each code point, by Unicode 3.2, which no Python changes."""
    names = np.array([unicodedata.ucd_3_2_0.category(chr(code)) for code in range(0x40000)])
    kinds = np.zeros(0x110000, np.uint8)
    kinds[np.flatnonzero(np.isin(names.astype("U1"), ["L", "M"]))] |= _LETTER
    kinds[np.flatnonzero(names.astype("U1") == "Z")] |= _SPACE
    kinds[0x09:0x0E] |= _SPACE
    for block in _WITHOUT_SPACES:
        kinds[block] |= _UNSPACED
    return kinds


@functools.cache
def _lower() -> npt.NDArray[np.uint32]:
    codes = np.arange(0x110000, dtype=np.uint32)
    for code in range(0x250):  # stop words are in Latin letters
        lower = chr(code).lower()
        codes[code] = ord(lower) if len(lower) == 1 else code
    return codes


@functools.lru_cache(maxsize=2)
def _power_tables(size: int) -> tuple[Hashes, Hashes]:
    tables = []
    for base in (_BASE, pow(_BASE, -1, 2**64)):
        table = np.full(size, base, np.uint64)
        table[0] = 1
        tables.append(np.multiply.accumulate(table))
    return tables[0], tables[1]


def _powers(size: int) -> tuple[Hashes, Hashes]:
    return _power_tables(1 << max(18, size.bit_length()))
