"""Texts -> flat token arrays with document, sentence and word borders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from kexue_train.samples.sentences import split_sentences
from kexue_train.samples.words import chinese_continuations

_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")
_MAX_SENTENCE_CHARS = 10_000  # a longer one is cut, so that one call's memory does not depend on the text
_CONTINUATION = "##"


@dataclass(frozen=True)
class Documents:
    """The tokens of a group of documents, one after the other, without special tokens.

    Attributes:
        token_ids: (n,) uint16 or uint32.
        word_starts: (n,) bool.
        offsets: (documents + 1,) int64; document d is ``[offsets[d], offsets[d + 1])``, maybe empty.
        sentence_starts: Rising int64 places of tokens that begin a sentence; every non-empty document's first is one.
    """

    token_ids: npt.NDArray[Any]
    word_starts: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    sentence_starts: npt.NDArray[np.int64]


class Encoder:
    """A tokenizer with what is needed to find words.

    Args:
        tokenizer: Changed to read special tokens written in a text ("[SEP]") as plain text.
        whole_word: Whether continuation pieces and Chinese words are joined; if not, every piece is a word.
    """

    def __init__(self, tokenizer: Tokenizer, *, whole_word: bool) -> None:
        tokenizer.encode_special_tokens = True
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._whole_word = whole_word
        self.vocab_size = tokenizer.get_vocab_size()
        self.dtype = id_dtype(self.vocab_size)
        self._is_continuation = np.zeros(self.vocab_size, np.bool_)
        pieces = tokenizer.get_vocab().items()
        self._is_continuation[[token_id for piece, token_id in pieces if piece.startswith(_CONTINUATION)]] = True

    def encode(self, texts: Sequence[str]) -> Documents:
        """Tokenize documents; the result depends on nothing but the texts."""
        sentences = [split_sentences(text, _MAX_SENTENCE_CHARS) for text in texts]
        flat = list(chain.from_iterable(sentences))
        chinese = [i for i, text in enumerate(flat) if _CHINESE.search(text)] if self._whole_word else []
        encodings = self._encode_sentences(flat, chinese)
        lists = [encoding.ids for encoding in encodings]
        lengths = np.fromiter(map(len, lists), np.int64, count=len(lists))
        token_ids = np.fromiter(chain.from_iterable(lists), self.dtype, count=int(lengths.sum()))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        word_starts = np.ones(len(token_ids), np.bool_)
        if self._whole_word:
            word_starts = ~self._is_continuation[token_ids]
            self._join_chinese(
                word_starts, [flat[i] for i in chinese], [encodings[i] for i in chinese], starts[chinese]
            )
        borders = list(accumulate(map(len, sentences), initial=0))
        return Documents(token_ids, word_starts, starts[borders], starts[:-1][lengths > 0])

    def _encode_sentences(self, sentences: list[str], chinese: list[int]) -> list[Any]:
        # Offsets of characters cost a third of the time; only segmented words need them.
        encodings: list[Any] = [None] * len(sentences)
        with_offsets = set(chinese)
        others = [i for i in range(len(sentences)) if i not in with_offsets]
        for places, encode in (
            (others, self._tokenizer.encode_batch_fast),
            (chinese, self._tokenizer.encode_batch),
        ):
            found = encode([sentences[i] for i in places], add_special_tokens=False)
            for place, encoding in zip(places, found, strict=True):
                encodings[place] = encoding
        return encodings

    @staticmethod
    def _join_chinese(
        word_starts: npt.NDArray[np.bool_], texts: list[str], encodings: list[Any], starts: npt.NDArray[np.int64]
    ) -> None:
        """Clear ``word_starts`` at characters inside a segmented word; ``starts``: first token of each of ``texts``."""
        if not texts:
            return
        offsets = [encoding.offsets for encoding in encodings]
        counts = np.fromiter(map(len, offsets), np.int64, count=len(offsets))
        pairs = chain.from_iterable(chain.from_iterable(offsets))
        chars = np.fromiter(pairs, np.int64, count=2 * int(counts.sum()))[::2]
        chars += np.repeat(np.fromiter(accumulate(map(len, texts[:-1]), initial=0), np.int64), counts)
        word_starts[ranges(starts, counts)] &= ~chinese_continuations(texts, chars)


def id_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """uint16 if it holds every id, else uint32."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The concatenation of ``arange(start, start + length)``: shape (sum of lengths,), int64."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)


def concatenate(parts: Iterable[Documents], dtype: type[np.unsignedinteger[Any]]) -> Documents:
    """One group of all documents of ``parts``, in order."""
    parts = list(parts)
    sizes = [len(part.token_ids) for part in parts]
    bases = list(accumulate(sizes, initial=0))
    moved = list(zip(parts, bases, strict=False))
    return Documents(
        np.concatenate([np.empty(0, dtype), *(part.token_ids for part in parts)]),
        np.concatenate([np.empty(0, np.bool_), *(part.word_starts for part in parts)]),
        np.concatenate([np.zeros(1, np.int64), *(part.offsets[1:] + base for part, base in moved)]),
        np.concatenate([np.empty(0, np.int64), *(part.sentence_starts + base for part, base in moved)]),
    )
