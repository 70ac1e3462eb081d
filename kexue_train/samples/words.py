"""Text -> words -> pieces, exactly as the tokenizer cuts them, by dictionary look-ups.

BERT's normalizer and pre-tokenizer treat each character alone: it is dropped, is white space, is a word, or is part of
a word. So a table of characters, which the tokenizer itself fills, cuts a text into the tokenizer's words, and each
distinct word goes through the WordPiece model once. That is several times faster than encoding every text, and the
offset of every word is known.
"""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer

from kexue_train.samples.schema import ranges

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
_MAX_KNOWN_WORDS = 1 << 18  # then all are forgotten, so that memory does not grow with the corpus
_LOOK_BACK = 1000  # characters


@cache
def chinese_characters() -> npt.NDArray[np.bool_]:
    """Return whether each code point is a Chinese character to BERT, always a word of its own: (0x110000,) bool."""
    points = np.concatenate([np.arange(first, last + 1) for first, last in _CHINESE])
    # The normalizer drops those that its Unicode tables lack.
    normalized = BertNormalizer().normalize_str("a".join(map(chr, points.tolist()))).split("a")
    table = np.zeros(0x110000, np.bool_)
    table[points] = [bool(character.strip()) for character in normalized]
    return table


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the code points of ``text``, one per character."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def continuations(texts: Sequence[str], segment: Segment) -> npt.NDArray[np.bool_]:
    """Return for every Chinese character of ``texts`` whether its word also holds the Chinese one before it.

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


class BertWords:
    """The words of texts and the pieces of words.

    Args:
        tokenizer: As ``read_tokenizer`` accepts it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._characters = _Characters(tokenizer)
        self._known = _KnownWords(tokenizer)

    def split(self, text: str) -> list[str]:
        """Return the words of ``text``, normalized, in order; special tokens written in it are plain text."""
        words = text.translate(self._characters).split()
        if self._characters.ordered_marks and not self._characters.ordered_marks.isdisjoint(text):
            return self._characters.split_whole(text)
        return words

    def pieces(
        self, words: Sequence[str]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the ids of the pieces of all ``words``, and by word their number (at least 1) and if it is Chinese."""
        if len(self._known) > _MAX_KNOWN_WORDS:
            self._known.forget()
        numbers = np.fromiter(map(self._known.__getitem__, words), np.int64, count=len(words))
        ends = np.array(self._known.ends)  # [n] is where word n begins, [n + 1] where it ends
        starts, lengths = ends[numbers], ends[numbers + 1] - ends[numbers]
        chinese = np.array(self._known.chinese).astype(np.bool_)
        return np.array(self._known.ids)[ranges(starts, lengths)], lengths, chinese[numbers]

    def cut(self, text: str, max_chars: int) -> list[str]:
        """Split ``text`` into pieces of about ``max_chars`` with the same words; joined they are ``text``.

        The cuts are after white space or punctuation, else after a Chinese character. Only where a single word is
        longer is a piece much longer than ``max_chars``.
        """
        pieces, start = [], 0
        while len(text) - start > max_chars:
            end = self._border(text, start + max_chars, start)
            pieces.append(text[start:end])
            start = end
        return [*pieces, text[start:]]

    def _border(self, text: str, wanted: int, start: int) -> int:
        def ends_word(offset: int) -> bool:
            return self._characters[ord(text[offset - 1])].endswith(" ")

        near = range(wanted, max(start, wanted - _LOOK_BACK), -1)
        quiet = (offset for offset in near if ends_word(offset) and not chinese_characters()[ord(text[offset - 1])])
        far = (offset for offset in range(wanted, len(text)) if ends_word(offset))
        return next(quiet, None) or next(far, len(text))


class _Characters(dict[int, str]):
    """Code point -> what it is in a text whose words lie between spaces: for ``str.translate``.

    Attributes:
        ordered_marks: The characters met so far that hold a combining mark which is kept and put in canonical order.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._normalizer, self._pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
        strip_accents = self._normalizer.strip_accents
        # It decomposes the text to strip the accents, and so puts marks in order.
        self._puts_marks_in_order = self._normalizer.lowercase if strip_accents is None else strip_accents
        self.ordered_marks: set[str] = set()

    def __missing__(self, code_point: int) -> str:
        normalized = self._normalizer.normalize_str(chr(code_point))
        if self._puts_marks_in_order and any(map(unicodedata.combining, normalized)):
            self.ordered_marks.add(chr(code_point))
        text = "".join(map(self._spaced, normalized))
        self[code_point] = text
        return text

    def split_whole(self, text: str) -> list[str]:
        """Return the words of ``text`` as the tokenizer finds them in the whole of it."""
        return [word for word, _ in self._pre_tokenizer.pre_tokenize_str(self._normalizer.normalize_str(text))]

    def _spaced(self, character: str) -> str:
        around = self._pre_tokenizer.pre_tokenize_str(f"a{character}a")
        return {1: character, 2: " ", 3: f" {character} "}[len(around)]


class _KnownWords(dict[str, int]):
    """Word -> its number n; its pieces are ``ids[ends[n]:ends[n + 1]]``. Number 0 is every word that is too long."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._model = tokenizer.model
        self._max_chars = self._model.max_input_chars_per_word
        self._unknown_id: int = tokenizer.get_vocab()["[UNK]"]
        self.forget()

    def forget(self) -> None:
        self.clear()
        self.ids, self.ends, self.chinese = array("I", [self._unknown_id]), array("q", [0, 1]), bytearray(1)

    def __missing__(self, word: str) -> int:
        if len(word) > self._max_chars:
            return 0
        number = len(self.ends) - 1
        self.ids.extend(token.id for token in self._model.tokenize(word))
        self.ends.append(len(self.ids))
        self.chinese.append(len(word) == 1 and bool(chinese_characters()[ord(word)]))
        self[word] = number
        return number
