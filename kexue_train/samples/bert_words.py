"""Text -> words -> pieces, exactly as the tokenizer cuts them, by dictionary look-ups.

BERT's normalizer and pre-tokenizer treat each character alone: it is dropped, is white space, is a word, or is part of
a word. So a table of characters, which the tokenizer itself fills, cuts a text into the tokenizer's words, and each
distinct word goes through the WordPiece model once. That is several times faster than encoding every text, and the
place of every word is known.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from kexue_train.samples.ragged import ranges
from kexue_train.samples.words import chinese_characters

_MAX_KNOWN_WORDS = 1 << 18  # then all are forgotten, so that memory does not grow with the corpus
_LOOK_BACK = 1000  # characters


class BertWords:
    """The words of texts and the pieces of words.

    Args:
        tokenizer: As ``read_tokenizer`` accepts it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._characters = _Characters(tokenizer)
        self._known = _KnownWords(tokenizer)

    def split(self, text: str) -> list[str]:
        """The words of ``text``, normalized, in order; special tokens written in it are plain text."""
        return text.translate(self._characters).split()

    def pieces(
        self, words: Sequence[str]
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Ids of the pieces of all ``words`` in order, and per word their number (at least 1) and if it is Chinese."""
        if len(self._known) > _MAX_KNOWN_WORDS:
            self._known.forget()
        numbers = np.fromiter(map(self._known.__getitem__, words), np.int64, count=len(words))
        ends = np.array(self._known.ends)  # [n] is where word n begins, [n + 1] where it ends
        starts, lengths = ends[numbers], ends[numbers + 1] - ends[numbers]
        chinese = np.array(self._known.chinese).astype(np.bool_)
        return np.array(self._known.ids)[ranges(starts, lengths)], lengths, chinese[numbers]

    def cut(self, text: str, max_chars: int) -> list[str]:
        """``text`` in pieces of about ``max_chars`` with the same words; joined they are ``text``.

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
        def ends_word(place: int) -> bool:
            return self._characters[ord(text[place - 1])].endswith(" ")

        near = range(wanted, max(start, wanted - _LOOK_BACK), -1)
        quiet = (place for place in near if ends_word(place) and not chinese_characters()[ord(text[place - 1])])
        far = (place for place in range(wanted, len(text)) if ends_word(place))
        return next(quiet, None) or next(far, len(text))


class _Characters(dict[int, str]):
    """Code point -> what it is in a text whose words lie between spaces: for ``str.translate``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._normalizer, self._pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer

    def __missing__(self, code_point: int) -> str:
        text = "".join(map(self._spaced, self._normalizer.normalize_str(chr(code_point))))
        self[code_point] = text
        return text

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
