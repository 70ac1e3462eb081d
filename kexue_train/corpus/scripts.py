"""Which scripts a text is written in: its letters counted by script, exact and cheap, where a language is a guess."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import lru_cache

_WIDTHS = ("fullwidth", "halfwidth")
_NAMES = {"Cjk": "Han", "Katakana-hiragana": "Katakana"}


def count_scripts(text: str) -> Counter[str]:
    """Count the letters of ``text`` by script, such as Latin, Han, Hiragana, Hangul, Arabic; marks and digits are none.

    A character of another width counts as the one it stands for.
    """
    found: Counter[str] = Counter()
    for character, number in Counter(text).items():
        if script := _script_of_letter(character):
            found[script] += number
    return found


def script_of(character: str) -> str:
    """Return what the name of a character begins with: Thai, Hiragana, Latin, Digit."""
    return unicodedata.name(character, "other").partition(" ")[0].capitalize()


@lru_cache(maxsize=1 << 16)
def _script_of_letter(character: str) -> str:
    if not unicodedata.category(character).startswith("L"):
        return ""
    name = unicodedata.name(character, "other").lower()
    for width in _WIDTHS:
        name = name.removeprefix(f"{width} ")
    first = name.partition(" ")[0].capitalize()
    return _NAMES.get(first, first)
