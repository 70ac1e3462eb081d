"""Texts -> flat token arrays with document, sentence and word borders."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
import numpy.typing as npt
import rjieba
from tokenizers import Tokenizer

from kexue_train.samples.schema import id_dtype
from kexue_train.samples.sentences import split_sentences
from kexue_train.samples.words import BertWords, Segment, continuations

_MAYBE_CHINESE = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]")
# What is worked on at once, so that memory beside the result does not grow with a document.
_PIECE_CHARS = 1 << 16
_BLOCK_CHARS = 1 << 19


@dataclass(frozen=True)
class Documents:
    """The tokens of a group of documents, one after the other, without special tokens.

    Attributes:
        token_ids: (n,) uint16 or uint32.
        word_starts: (n,) bool.
        offsets: (documents + 1,) int64; document d is ``[offsets[d], offsets[d + 1])``, maybe empty.
        sentence_starts: Rising int64 positions of tokens that begin a sentence, and so of each non-empty document.
    """

    token_ids: npt.NDArray[Any]
    word_starts: npt.NDArray[np.bool_]
    offsets: npt.NDArray[np.int64]
    sentence_starts: npt.NDArray[np.int64]


class Encoder:
    """A tokenizer that also finds words and sentences.

    Args:
        tokenizer: As ``load_tokenizer`` gives it. Special tokens written in a text ("[SEP]") are read as plain text.
        whole_word: Whether the pieces of an English word, and the characters of a Chinese one, make one word; if not,
            every piece is a word.
        segment: Finds the Chinese words; called with texts of limited length.
    """

    def __init__(self, tokenizer: Tokenizer, *, whole_word: bool, segment: Segment = rjieba.cut) -> None:
        self._words = BertWords(tokenizer)
        self._whole_word, self._segment = whole_word, segment
        self.vocab_size = tokenizer.get_vocab_size()
        self.dtype = id_dtype(self.vocab_size)

    def encode(self, texts: Sequence[str]) -> Documents:
        """Tokenize documents; the result depends on nothing but the texts."""
        sentences = [split_sentences(text) for text in texts]
        pieces = [self._words.cut(sentence, _PIECE_CHARS) for sentence in chain.from_iterable(sentences)]
        parts = [self._encode(block) for block in _blocks(chain.from_iterable(pieces))]
        ids, word_starts, counts = (
            np.concatenate([np.empty(0, dtype), *(part[i] for part in parts)])
            for i, dtype in enumerate((self.dtype, np.bool_, np.int64))
        )
        # First token of every piece of text, then of every sentence, then of every document; and where the last ends.
        starts = np.concatenate([[0], np.cumsum(counts)])
        starts = starts[_borders(pieces)]
        return Documents(ids, word_starts, starts[_borders(sentences)], starts[:-1][np.diff(starts) > 0])

    def _encode(self, texts: list[str]) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Return token ids and word starts of ``texts`` joined, and the number of tokens of each."""
        words = [self._words.split(text) for text in texts]
        flat = list(chain.from_iterable(words))
        ids, lengths, chinese = self._words.pieces(flat)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        counts = np.diff(ends[_borders(words)])
        word_starts = np.full(len(ids), not self._whole_word)
        if self._whole_word:
            word_starts[ends[:-1]] = True
            word_starts[ends[:-1][chinese]] = ~self._chinese_continuations(texts)
        return ids.astype(self.dtype), word_starts, counts

    def _chinese_continuations(self, texts: list[str]) -> npt.NDArray[np.bool_]:
        with_chinese = [text for text in texts if _MAYBE_CHINESE.search(text)]
        return continuations(with_chinese, self._segment)


def concatenate(parts: Iterable[Documents], dtype: type[np.unsignedinteger[Any]]) -> Documents:
    """Return one group of all documents of ``parts``, in order."""
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


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= _BLOCK_CHARS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _borders(groups: Iterable[Sequence[Any]]) -> list[int]:
    """Return where each of ``groups`` begins if they are joined, and where the last ends."""
    return list(accumulate(map(len, groups), initial=0))
