"""Phrases are found without a dictionary, by neighbours that stand side by side more often than by chance."""

from __future__ import annotations

import numpy as np

from claims.claim import Bars, Claim, Figures, Found, Setting
from claims.verdict import Verdict, above, all_of, below
from kexue_train.samples.phrases import count_neighbours, find_phrases

_FIRST, _ALPHABET = 0x4E00, 400
_WORDS, _TEXTS, _LENGTH = 60, 400, 200
_SHOWN = (
    "planted phrases found, %",
    "found that were planted, %",
    "the same, a quarter of the texts",
    "found in mixed characters",
)


def measure(seed: int, _: Setting) -> Figures:
    """Phrases that were planted in random characters, and those that the method finds."""
    generator = np.random.default_rng([seed, 5577])
    shuffled = generator.permutation(_ALPHABET)
    words = ["".join(chr(_FIRST + c) for c in shuffled[3 * n : 3 * n + 3][: 2 + n % 2]) for n in range(_WORDS)]
    singles = [chr(_FIRST + c) for c in shuffled[3 * _WORDS :]]
    texts = ["".join(_text(generator, words, singles)) for _ in range(_TEXTS)]
    found, in_few = (_phrases(some) for some in (texts, texts[: _TEXTS // 4]))
    chance = ["".join(generator.permutation(list(text))) for text in texts]
    pmi = count_neighbours(chance)
    return {
        "planted phrases found, %": 100 * len(found & set(words)) / len(words),
        "found that were planted, %": 100 * len(found & set(words)) / max(1, len(found)),
        "the same, a quarter of the texts": 100 * len(in_few & set(words)) / max(1, len(in_few)),
        "found in mixed characters": float(len(_phrases(chance))),
        "mean PMI of mixed characters": float(np.average(pmi.pmi(), weights=pmi.pair_counts)),
    }


def _phrases(texts: list[str]) -> set[str]:
    return {phrase for phrase in find_phrases(lambda: texts) if len(phrase) > 1}


def _text(generator: np.random.Generator, words: list[str], singles: list[str]) -> list[str]:
    """Return words and single characters in turn at random; a third of the pieces are words."""
    pieces = []
    for is_word in generator.random(_LENGTH) < 1 / 3:
        pieces.append(str(generator.choice(words if is_word else singles)))
    return pieces


def judge(found: Found) -> Verdict:
    """Nearly all of the planted ones, hardly any other."""
    return all_of(
        above(found["planted phrases found, %"], confirms=90.0, refutes=50.0),
        above(found["found that were planted, %"], confirms=90.0, refutes=50.0),
        below(found["found in mixed characters"], confirms=3.0, refutes=30.0),
    )


CLAIM = Claim(
    name="pmi-phrases",
    sentence="Characters that stand beside each other more often than by chance, ln(p_ab / (p_a p_b)) above a "
    "bound, give the phrases of a text without a dictionary.",
    source=5577,
    measured=f"{_WORDS} made-up words of two and three characters among single ones, {_TEXTS} texts of {_LENGTH} "
    "pieces: which the finder of phrases (window of 1) returns, and what it returns once the characters of every "
    "text are mixed.",
    refuted_if="fewer than half of the planted words are found, or fewer than half of those found were planted; "
    "confirmed from 90 % on for both.",
    unit="",
    shown=_SHOWN,
    picture=Bars(_SHOWN, "percent; number"),
    seconds=10,
    measure=measure,
    judge=judge,
    remark="No planted word is missed. What else is found are pairs that chance makes just often enough: five "
    "times, where one is expected. In a quarter of the texts there is none, in more text they fall below the bound "
    "of PMI again; so the bounds (least count, least PMI) have to fit the amount of text. Words of the test share "
    "no characters, which is easier than a language. What whole-phrase masking is worth for training is not "
    "measured.",
)
