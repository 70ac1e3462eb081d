"""Where sentences begin, in Chinese and English; every character belongs to exactly one sentence.

A sentence ends at 。！？；… (with what closes after it), at . ! ? before white space unless an abbreviation, an initial
or a lower-case word says otherwise, and at a blank line. Decimals, URLs and ``e.g.`` hold no end.
"""

from __future__ import annotations

import re

_CLOSING = r"[\"'”’」』）】》〉\)\]]*"
_CANDIDATE = re.compile(
    rf"(?P<wide>[。！？；…]+{_CLOSING}\s*)|(?P<narrow>[.!?]+{_CLOSING})(?P<space>\s*)|(?P<blank>\n[^\S\n]*\n\s*)"
)
_LAST_WORD = re.compile(r"([^\W\d_]+(?:\.[^\W\d_]+)*)\.$")
_LOOK_BACK = 24  # characters; longer than any abbreviation
_ABBREVIATIONS = re.compile(
    r"(adm|al|approx|apr|assn|assoc|aug|ave|bros|ca|capt|cf|cmdr|co|col|corp|dec|dept|dr|eds?|eqs?|esp|est|feb|figs?|gen"
    r"|gov|hon|inc|jan|jr|jul|jun|lt|ltd|maj|messrs|mr|mrs|ms|mt|nov|oct|op|pp|pres|prof|pt|pvt|rev|sec|sen|sept?|sgt|sr"
    r"|st|supt|univ|viz|vols?|vs)",
    re.IGNORECASE,
)


def sentence_cuts(text: str) -> list[int]:
    """Rising offsets at which a new sentence begins, without 0 and the end; white space stays with what it follows."""
    cuts = []
    for match in _CANDIDATE.finditer(text):
        end = match.end()
        if end < len(text) and (match["narrow"] is None or _ends_sentence(text, match)):
            cuts.append(end)
    return cuts


def split_sentences(text: str, max_chars: int) -> list[str]:
    """The sentences of ``text``, in order; joined they are ``text``. None is empty or longer than ``max_chars``.

    A longer one is cut after its last white space within ``max_chars``, or, without any, at ``max_chars``.
    """
    sentences = []
    start = 0
    for end in [*sentence_cuts(text), len(text)]:
        while end - start > max_chars:
            cut = _last_space(text, start, start + max_chars)
            sentences.append(text[start:cut])
            start = cut
        if end > start:
            sentences.append(text[start:end])
        start = end
    return sentences


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    following = text[match.end()]
    if not match["space"]:
        # Chinese written with ASCII marks has no space after them.
        return match["narrow"][0] in "!?" and "\u2e80" <= following <= "\u9fff"
    if "\n" in match["space"] and match["space"].count("\n") > 1:
        return True
    if following.islower():
        return False
    if not match["narrow"].startswith(".") or match["narrow"].startswith(".."):
        return True
    end = match.start("narrow") + 1
    word = _LAST_WORD.search(text, max(0, end - _LOOK_BACK), end)
    if word is None:
        return True
    is_initial = len(word[1]) == 1 and word[1].isupper()
    return not is_initial and "." not in word[1] and not _ABBREVIATIONS.fullmatch(word[1])


def _last_space(text: str, start: int, limit: int) -> int:
    for place in range(limit, max(start, limit - 1000), -1):
        if text[place - 1].isspace():
            return place
    return limit
