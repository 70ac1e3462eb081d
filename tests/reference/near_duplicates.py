"""Near duplicates by their definition: n-grams as tuples of strings, all pairs, plain sets."""

from __future__ import annotations

import re
from itertools import combinations

_ALONE = (
    "\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u312f\u31a0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_TOKEN = re.compile(f"[{_ALONE}]|[^\\W_{_ALONE}]+")


def tokens(text: str) -> list[str]:
    """Return words and single characters; for texts in scripts that need no combining marks."""
    return [word.lower() for word in _TOKEN.findall(text)]


def ngrams(text: str, length: int) -> set[tuple[str, ...]]:
    words = tokens(text)
    if not words:
        return set()
    return {tuple(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def jaccard(left: set, right: set) -> float:
    return len(left & right) / len(left | right) if left | right else 0.0


def clusters(texts: list[str], length: int, threshold: float) -> set[frozenset[int]]:
    """Return the components of two or more texts; equal texts count as one, the first."""
    first = {text: texts.index(text) for text in texts}
    grams = {number: ngrams(text, length) for text, number in first.items()}
    root = {number: number for number in grams}
    for left, right in combinations(sorted(grams), 2):
        if jaccard(grams[left], grams[right]) >= threshold and root[left] != root[right]:
            low, high = sorted([root[left], root[right]])
            root = {number: low if value == high else value for number, value in root.items()}
    found = {frozenset(n for n in root if root[n] == value) for value in root.values()}
    return {cluster for cluster in found if len(cluster) > 1}
