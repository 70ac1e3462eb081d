"""Documents -> sequences: next-sentence pairs as BERT makes them, or full-length single sequences.

The walk through a document takes the next ``target`` tokens and splits them at a sentence border into A and B. With
probability 1/2 B is taken from the *following* document of the group instead, which in shuffled shards is a uniformly
random other one; the walk then goes on right after A. So every token of every document is in exactly one sequence as
part of A or of a true B; only copied Bs come on top.

Two choices keep the label from being readable off the lengths: a copied B is as long as the one it stands for, and it
starts where the other document still holds that many tokens, if there is such a sentence.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kexue_train.samples.encode import Documents

IS_NEXT, IS_RANDOM, NO_PAIR = 0, 1, -100


@dataclass(frozen=True)
class Sequences:
    """Sequences as ranges of their documents' tokens; five int64 arrays of the same length.

    Attributes:
        a_starts: First token of A.
        a_lengths: Tokens of A, at least 1.
        b_starts: First token of B.
        b_lengths: Tokens of B; 0 in a single sequence.
        labels: 0 = B is next, 1 = B is from another document, -100 = no B.
    """

    a_starts: npt.NDArray[np.int64]
    a_lengths: npt.NDArray[np.int64]
    b_starts: npt.NDArray[np.int64]
    b_lengths: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence with its [CLS] and [SEP]s."""
        return self.a_lengths + self.b_lengths + np.where(self.b_lengths > 0, 3, 2)

    def take(self, order: npt.NDArray[np.int64] | slice) -> Sequences:
        """The sequences at ``order``."""
        return Sequences(
            self.a_starts[order],
            self.a_lengths[order],
            self.b_starts[order],
            self.b_lengths[order],
            self.labels[order],
        )


def make_sequences(
    documents: Documents, *, seq_len: int, nsp: bool, short_sequence_probability: float, rng: np.random.Generator
) -> Sequences:
    """Cut every document of a group into sequences of at most ``seq_len`` tokens, special tokens included.

    Args:
        documents: The group; B of a negative pair is from the next non-empty document, after the last from the first.
        seq_len: At least 5.
        nsp: Whether to make pairs; if not, ``short_sequence_probability`` and ``rng`` have no effect.
        short_sequence_probability: Share of pairs whose target length is uniform in [2, seq_len - 3].
        rng: All choices come from here, in document order.

    A group with one non-empty document has no negative pairs.
    """
    filled = np.flatnonzero(np.diff(documents.offsets)).tolist()
    borders = [(int(documents.offsets[d]), int(documents.offsets[d + 1])) for d in filled]
    if not nsp:
        found = [row for start, end in borders for row in _single_sequences(start, end, seq_len - 2)]
    else:
        walk = _PairWalk(documents, seq_len - 3, short_sequence_probability, _draws(rng).__next__)
        others = borders[1:] + borders[:1] if len(borders) > 1 else [None]
        found = [row for own, other in zip(borders, others, strict=False) for row in walk.sequences(own, other)]
    columns = np.array(found, np.int64).reshape(-1, 5).T
    return Sequences(*(np.ascontiguousarray(column) for column in columns))


_Row = tuple[int, int, int, int, int]
_Span = tuple[int, int]


class _PairWalk:
    def __init__(
        self, documents: Documents, max_tokens: int, short_sequence_probability: float, draw: Callable[[], float]
    ) -> None:
        self.word_starts = documents.word_starts
        self.sentences: list[int] = documents.sentence_starts.tolist()
        self.max_tokens = max_tokens
        self.short_sequence_probability = short_sequence_probability
        self.draw = draw

    def sequences(self, own: _Span, other: _Span | None) -> Iterator[_Row]:
        """The sequences of the document ``own``; B of a negative pair comes from ``other``."""
        place, end = own
        while place < end:
            tokens = min(self._target(), end - place)
            split = self._split(place, tokens)
            if split == 0:
                yield place, tokens, 0, 0, NO_PAIR
                place += tokens
            elif other is not None and self.draw() < 0.5:
                b_start, b_length = self._random_b(other, tokens - split)
                yield place, split, b_start, b_length, IS_RANDOM
                place += split
            else:
                yield place, split, place + split, tokens - split, IS_NEXT
                place += tokens

    def _target(self) -> int:
        if self.draw() < self.short_sequence_probability:
            return 2 + int(self.draw() * (self.max_tokens - 1))
        return self.max_tokens

    def _split(self, place: int, tokens: int) -> int:
        """Tokens of A: up to a random sentence border inside, else the word border nearest to a random one, else 0."""
        sentences = self.sentences
        first, last = bisect_right(sentences, place), bisect_left(sentences, place + tokens)
        if first < last:
            return sentences[first + int(self.draw() * (last - first))] - place
        words = np.flatnonzero(self.word_starts[place + 1 : place + tokens]) + 1
        if not len(words):
            return 0
        wanted = 1 + self.draw() * (tokens - 1)
        return int(words[np.argmin(np.abs(words - wanted))])

    def _random_b(self, other: _Span, wanted: int) -> _Span:
        sentences = self.sentences
        start, end = other
        first = bisect_left(sentences, start)
        last = max(first + 1, bisect_right(sentences, end - wanted, lo=first))
        chosen = sentences[first + int(self.draw() * (last - first))]
        return chosen, min(wanted, end - chosen)


def _single_sequences(start: int, end: int, max_tokens: int) -> Iterator[_Row]:
    for place in range(start, end, max_tokens):
        yield place, min(max_tokens, end - place), 0, 0, NO_PAIR


def _draws(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(1024).tolist()
