"""Documents -> sequences: next-sentence pairs as BERT makes them, or full-length single sequences.

The walk through a document takes the next ``target`` tokens and splits them at a sentence border into A and B. With
probability 1/2 B is replaced by a passage of a *following* document of the group, which in shuffled shards is a
uniformly random other one; the walk then continues right after A. So every token of every document is in exactly one
sequence as part of A or of a true B; only copied Bs come on top. Tokens without a sentence border among them (a short
document, a part of a long sentence) are a single sequence.

A copied B must not be what follows A, though documents that are copies of each other, or that share a sentence, lie
together in any corpus. A passage *continues* A if it begins with the sentence that follows A (or is a beginning of it),
or if the text before it is A. Then the first passage that does not is taken instead, without a draw: of the documents
ahead, sentence by sentence, the long enough ones first. If all of them continue A, the pair keeps its true B.

The label must show in nothing but the contents. Therefore the lengths of A and B are settled before the coin is
tossed, the passage starts with a sentence but not with its document (a true B never does), and it ends with a sentence
where the true B ends with its document; only then its length differs, by less than a sentence to either side.

Source: Devlin et al., "BERT" (2019), ``create_pretraining_data.py``, where short sequences give the label away.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kexue_train.samples.encode import Documents
from kexue_train.samples.schema import ranges

IS_NEXT, IS_RANDOM, NO_PAIR = 0, 1, -100
_LOOK_AHEAD = 16  # documents among which one is sought that is long enough for B
_STARTS = 32  # sentences among which one is sought from which whole sentences make up the length of B


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
        """Return the sequences at ``order``."""
        return Sequences(
            self.a_starts[order],
            self.a_lengths[order],
            self.b_starts[order],
            self.b_lengths[order],
            self.labels[order],
        )

    def count_whole(self, documents: Documents) -> int:
        """Return how many of ``documents`` are one single sequence, not cut and without a pair."""
        borders = documents.offsets
        is_whole = np.isin(self.a_starts, borders) & np.isin(self.a_starts + self.a_lengths, borders)
        return int(np.count_nonzero(is_whole & (self.labels == NO_PAIR)))


def make_sequences(
    documents: Documents, *, seq_len: int, nsp: bool, short_sequence_probability: float, rng: np.random.Generator
) -> Sequences:
    """Cut every document of a group into sequences of at most ``seq_len`` tokens, special tokens included.

    Args:
        documents: The group. B of a negative pair is from the next of the 16 following non-empty documents (after the
            last comes the first) that is long enough; if none is, from the longest of them, and the pair is shorter.
        seq_len: At least 5.
        nsp: Whether to make pairs; if not, ``short_sequence_probability`` and ``rng`` have no effect.
        short_sequence_probability: Share of pairs whose target length is uniform in [2, seq_len - 3].
        rng: All choices come from here, in document order.

    A group with one non-empty document has no negative pairs.
    """
    if not nsp:
        return _single_sequences(documents.offsets, seq_len - 2)
    walk = _PairWalk(documents, seq_len - 3, short_sequence_probability, _draws(rng).__next__)
    found = array("q")
    for document in range(walk.num_documents):
        for sequence in walk.sequences(document):
            found.extend(sequence)
    columns = np.frombuffer(found, np.int64).reshape(-1, 5).T
    return Sequences(*(np.ascontiguousarray(column) for column in columns))


_Row = tuple[int, int, int, int, int]
_Passage = tuple[int, int]
"""First token and number of tokens."""


class _Split(NamedTuple):
    """A pair before its B is chosen; positions are tokens of the group."""

    document: int
    start: int
    """Where A begins."""
    cut: int
    """The sentence border, by its number, where A ends and the true B begins."""
    middle: int
    """Its position."""
    length: int
    """Tokens of B."""
    ends_document: bool
    """Whether the true B ends with its document."""


class _PairWalk:
    """Documents here are the non-empty ones."""

    def __init__(
        self, documents: Documents, max_tokens: int, short_sequence_probability: float, draw: Callable[[], float]
    ) -> None:
        offsets = np.unique(documents.offsets)
        borders = np.append(documents.sentence_starts, offsets[-1])
        first = np.searchsorted(borders, offsets)
        # The second sentence, in a document of one sentence the first.
        passages = np.minimum(first[:-1] + 1, first[1:] - 1)
        # Views, not lists: a Python object for each sentence takes memory.
        self.borders = borders.data
        self.offsets = offsets.data
        self.tokens = documents.token_ids.data
        self.passages = passages.data
        self.available = (offsets[1:] - borders[passages]).data
        self.num_documents = len(offsets) - 1
        self.max_tokens = max_tokens
        self.short_sequence_probability = short_sequence_probability
        self.draw = draw

    def sequences(self, document: int) -> Iterator[_Row]:
        start, end = self.offsets[document], self.offsets[document + 1]
        while start < end:
            tokens = min(self._target(), end - start)
            cut = self._cut(start, tokens)
            if cut is None:
                yield start, tokens, 0, 0, NO_PAIR
                start += tokens
                continue
            middle = self.borders[cut]
            length = start + tokens - middle
            other = self._other(document, length)
            if other is not None:
                length = min(length, self.available[other])
                if self.draw() < 0.5:
                    split = _Split(document, start, cut, middle, length, middle + length == end)
                    passage = self._passage(other, split)
                    if passage is not None:
                        yield start, middle - start, *passage, IS_RANDOM
                        start = middle
                        continue
            yield start, middle - start, middle, length, IS_NEXT
            start = middle + length

    def _target(self) -> int:
        if self.draw() < self.short_sequence_probability:
            return 2 + int(self.draw() * (self.max_tokens - 1))
        return self.max_tokens

    def _cut(self, start: int, tokens: int) -> int | None:
        """Return a random sentence border among the tokens, by its number; None if there is none."""
        first, last = bisect_right(self.borders, start), bisect_left(self.borders, start + tokens)
        return self._choose(first, last) if first < last else None

    def _other(self, document: int, length: int) -> int | None:
        """Return the next document with a passage of so many tokens."""
        longest = None
        for ahead in range(1, min(_LOOK_AHEAD + 1, self.num_documents)):
            other = (document + ahead) % self.num_documents
            if self.available[other] >= length:
                return other
            if longest is None or self.available[other] > self.available[longest]:
                longest = other
        return longest

    def _passage(self, other: int, split: _Split) -> _Passage | None:
        """Return a random passage of ``other``; if it continues A, another one; None if all do."""
        found = self._passage_from(self._choose(self.passages[other], self._last(other, split.length)), other, split)
        return self._another_passage(split) if self._continues(found, other, split) else found

    def _another_passage(self, split: _Split) -> _Passage | None:
        """Return the first passage that does not continue A: no draw, since only a corpus with copies comes here."""
        candidates = chain(self._passages_ahead(split, is_long=True), self._passages_ahead(split, is_long=False))
        return next((found for other, found in candidates if not self._continues(found, other, split)), None)

    def _passages_ahead(self, split: _Split, *, is_long: bool) -> Iterator[tuple[int, _Passage]]:
        """Yield passages of the length of B from the documents ahead; or else the shorter ones at their ends."""
        for ahead in range(1, min(_LOOK_AHEAD + 1, self.num_documents)):
            other = (split.document + ahead) % self.num_documents
            first, last, end = self.passages[other], self._last(other, split.length), self.offsets[other + 1]
            borders = range(first, last) if is_long else range(max(first, last), bisect_left(self.borders, end))
            for chosen in borders[:_STARTS]:
                fitting = split._replace(length=min(split.length, end - self.borders[chosen]))
                yield other, self._passage_from(chosen, other, fitting)

    def _continues(self, passage: _Passage, other: int, split: _Split) -> bool:
        """Return whether ``passage`` reads on like A: it begins with the next sentence, or the text before it is A."""
        tokens, (start, length), middle = self.tokens, passage, split.middle
        size = min(self.borders[split.cut + 1] - middle, length)
        if tokens[start] == tokens[middle] and tokens[start : start + size] == tokens[middle : middle + size]:
            return True
        if tokens[start - 1] != tokens[middle - 1]:
            return False
        # A from the beginning of its first sentence, so that the few last tokens of one are no match.
        begin = self.borders[bisect_right(self.borders, split.start) - 1]
        before = start - (middle - begin)
        return before >= self.offsets[other] and tokens[before:start] == tokens[begin:middle]

    def _last(self, other: int, length: int) -> int:
        """Return the border behind the last one that leaves room for ``length`` tokens before the document's end."""
        return bisect_right(self.borders, self.offsets[other + 1] - length)

    def _passage_from(self, chosen: int, other: int, split: _Split) -> _Passage:
        """Return the first token and the number of tokens of a passage from border ``chosen`` or soon after it.

        With sentence borders 0, 4, 9, 15, 20 in a document of 20 tokens and ``length`` 7, a passage can begin at the
        borders 4 and 9: not at 0, where the document begins, and not behind 20 - 7 = 13. If the true B would end with
        its document, the passage must end at a border too: from 4 the borders around 4 + 7 = 11 are 9 and 15, so
        (4, 5) and (4, 11) are candidates; from 9 they are 15 and 20, so (9, 6) and (9, 11). (9, 6) misses 7 by least.
        """
        start, length = self.borders[chosen], split.length
        if not split.ends_document:
            return start, length
        whole = [
            (start, end - start)
            for start in self.borders[chosen : min(chosen + _STARTS, self._last(other, length))]
            for end in self._ends_around(start + length)
            if 0 < end - start <= self.max_tokens - (split.middle - split.start)
        ]
        return min(whole, key=lambda passage: abs(passage[1] - length), default=(start, length))

    def _ends_around(self, start: int) -> memoryview:
        """Return the last sentence border before ``start`` and the first from there on."""
        above = bisect_left(self.borders, start)
        return self.borders[above - 1 : above + 1]

    def _choose(self, first: int, last: int) -> int:
        """Return a uniformly random number of ``range(first, last)``."""
        return first + int(self.draw() * (last - first))


def _single_sequences(offsets: npt.NDArray[np.int64], max_tokens: int) -> Sequences:
    lengths = np.diff(offsets)
    counts = -(-lengths // max_tokens)
    within = ranges(np.zeros_like(counts), counts) * max_tokens
    starts = np.repeat(offsets[:-1], counts) + within
    none = np.zeros_like(starts)
    left = np.repeat(lengths, counts) - within
    return Sequences(starts, np.minimum(left, max_tokens), none, none, np.full_like(starts, NO_PAIR))


def _draws(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(1024).tolist()
