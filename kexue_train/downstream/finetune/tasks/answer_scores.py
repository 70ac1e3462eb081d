"""Exact match and F1 of answers in a text, as the data sets' own scripts compute them.

* ``squad``: words; small letters, without punctuation and English articles; F1 of the bags of words.
* ``squad_zh``: the same with every Chinese character as a word, as MLQA and XQuAD score Chinese.
* ``cmrc``: units as ``squad_zh``; F1 of the longest run of units that both share, relative to both lengths.

Of several right answers the nearest counts. Where CMRC's script cuts Latin text with NLTK, here runs of letters and
digits are words.

Source: evaluate-v1.1.py of SQuAD, mlqa_evaluation_v1.py of MLQA, cmrc2018_evaluate.py of github.com/ymcui/cmrc2018.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_UNITS = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》…·、「」（）－～『』")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)

Units = list[str]


def words(text: str) -> Units:
    """Of English text, as SQuAD's script has them."""
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()


def mixed_units(text: str) -> Units:
    """Chinese characters and Latin words in small letters, without punctuation."""
    return _UNITS.findall(text.lower())


def bag_f1(found: Units, answer: Units) -> float:
    """Harmonic mean of precision and recall of the units, each as often as it occurs; 0 if none is shared."""
    shared = sum((Counter(found) & Counter(answer)).values())
    return 2 * shared / (len(found) + len(answer)) if shared else 0.0


def run_f1(found: Units, answer: Units) -> float:
    """The same of the longest run that both share."""
    matcher = SequenceMatcher(None, found, answer, autojunk=False)
    shared = matcher.find_longest_match().size
    return 2 * shared / (len(found) + len(answer)) if shared else 0.0


_Rules = tuple[Callable[[str], Units], Callable[[Units, Units], float]]
SCORINGS: dict[str, _Rules] = {
    "squad": (words, bag_f1),
    "squad_zh": (mixed_units, bag_f1),
    "cmrc": (mixed_units, run_f1),
}


def answer_scores(found: Sequence[str], answers: Sequence[Sequence[str]], scoring: str) -> dict[str, float]:
    """Mean over all questions of the best F1 and the best exact match among the right answers.

    Args:
        found: (n,) answers given.
        answers: (n,) right answers of every question, at least one each.
        scoring: Key of ``SCORINGS``.
    """
    units_of, f1_of = SCORINGS[scoring]
    f1 = exact = 0.0
    for text, right in zip(found, answers, strict=True):
        units = units_of(text)
        right_units = [units_of(answer) for answer in right]
        f1 += max(f1_of(units, other) for other in right_units)
        exact += max(_is_same(text, answer, scoring, units_of) for answer in right)
    return {"f1": f1 / len(found), "exact_match": exact / len(found)}


def _is_same(found: str, answer: str, scoring: str, units_of: Callable[[str], Units]) -> bool:
    if scoring == "cmrc":  # its script joins what is left without punctuation
        return _letters(found) == _letters(answer)
    return units_of(found) == units_of(answer)


def _letters(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)
