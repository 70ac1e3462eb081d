"""A task of topics made of any texts: which of four words a passage is about."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

_TOPICS, _EACH, _LEAST = 4, 60, 4
_PASSAGE = 360
_MOST_COMMON_SHARE = 0.1
"""A word in more of the documents is no topic."""


@dataclass(frozen=True)
class Topics:
    """Passages with the index of their topic, equally many of each."""

    words: list[str]
    passages: list[str]
    answers: list[int]

    def without_words(self) -> list[str]:
        """Return the passages with all topic words taken out, so that nothing of a prompt stands in a passage."""
        pattern = re.compile(rf"\b\w*(?:{'|'.join(self.words)})\w*\b", re.IGNORECASE)
        return [" ".join(pattern.sub(" ", passage).split()) for passage in self.passages]


def find_topics(documents: Sequence[str]) -> Topics:
    """Return the task: frequent words that hardly share documents, and passages of those that repeat one of them."""
    repeated = [_repeated_words(document) for document in documents]
    frequency = Counter(word for words in repeated for word in words)
    common = _MOST_COMMON_SHARE * len(documents)
    chosen: list[str] = []
    for word, count in frequency.most_common():
        shared = sum(word in words and any(other in words for other in chosen) for words in repeated)
        if count < common and shared < 0.1 * count:
            chosen.append(word)
        if len(chosen) == _TOPICS:
            break
    found: list[list[str]] = [[] for _ in chosen]
    for document, words in zip(documents, repeated, strict=True):
        own = [number for number, word in enumerate(chosen) if word in words]
        if len(own) == 1:
            found[own[0]].append(_passage(document, chosen[own[0]]))
    size = min(_EACH, *(len(passages) for passages in found))
    passages = [passage for of_topic in found for passage in of_topic[:size]]
    return Topics(chosen, passages, [number for number in range(len(chosen)) for _ in range(size)])


def _repeated_words(document: str) -> set[str]:
    counts = Counter(re.findall(r"\b[a-z]{5,}\b", document.lower()))
    return {word for word, count in counts.items() if count >= _LEAST}


def _passage(document: str, word: str) -> str:
    start = max(0, document.lower().find(word) - _PASSAGE // 2)
    return " ".join(document[start : start + _PASSAGE].split())
