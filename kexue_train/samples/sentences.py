"""Where sentences begin, in Chinese and English; every character belongs to exactly one sentence.

A sentence ends, with the quotes and brackets that close after it and the white space that follows,

* at 。！？； and the full stops of other scripts; at ! ? between Chinese characters;
* at . ! ? before white space and at … unless the text continues in lower case; not at the point of an abbreviation, an
  initial or a number that counts ("Dr.", "U.S.", "No. 5", "1. " at the start of a line);
* at a blank line.

So decimals, URLs and "e.g." hold no end. One pattern finds all ends, since every character of a corpus passes here.
"""

from __future__ import annotations

import re
from itertools import pairwise

_WIDE = "。！？；｡؟۔।॥⁇⁈⁉‼"  # end a sentence whatever follows
_CLOSING = r"[\"'”’»」』】）》〉\)\]]*+"
_CHINESE = r"[\u3040-\u9fff「『《（【]"
_LOWER = "".join(char for char in map(chr, [*range(0x600), *range(0x1E00, 0x2000)]) if char.islower())
_ABBREVIATIONS = (  # by length, since a look-behind has one
    "al|ca|cf|co|dr|ed|eq|jr|lt|mr|ms|mt|op|pp|pt|sr|st|vs",
    "adm|apr|aug|ave|col|dec|eds|eqs|esp|est|feb|fig|gen|gov|hon|inc|jan|jul",
    "jun|ltd|maj|mrs|nov|oct|pvt|rev|sec|sen|sep|sgt|viz|vol",
    "assn|bros|capt|cmdr|corp|dept|figs|pres|prof|sept|supt|univ|vols",
    "assoc",
    "approx|messrs",
)
_LETTER = r"[^\W\d_]"
_IS_NO_ABBREVIATION = "".join(rf"(?<!\b(?i:{words})\.)" for words in _ABBREVIATIONS)
_IS_FULL_STOP = (
    rf"(?<![\s.(\[\"“]{_LETTER}\.)(?<!\A{_LETTER}\.)"  # initials, U.S., e.g., p. 5
    rf"{_IS_NO_ABBREVIATION}(?!(?<=\b[Nn]o\.)\s+\d)"
    r"(?<!^\d\.)(?<!^\d\d\.)"  # numbers of a list
)
_MARK = re.compile(
    rf"[{_WIDE}….!?\n](?:"  # one set of characters first: the scan for it is fast
    rf"(?<=[{_WIDE}])[{_WIDE}….!?]*+{_CLOSING}\s*+"
    rf"|(?<=…)…*+{_CLOSING}\s*+(?![{_WIDE}.!?{_LOWER}])"
    rf"|(?<=[.!?])(?=[.!?…]*+{_CLOSING}\s++[^{_LOWER}])(?:(?=[.!?…])|{_IS_FULL_STOP})[.!?…]*+{_CLOSING}\s++"
    rf"|(?<=[!?])[!?]*+{_CLOSING}(?={_CHINESE})"
    r"|(?<=\n)[^\S\n]*+\n\s*+"
    r"|(?<=[….!?])[….!?]*+(?P<no_end>))",  # a run of marks is passed over at once, or it would cost its square
    re.MULTILINE,
)


def sentence_cuts(text: str) -> list[int]:
    """Return the rising offsets at which sentences begin, without 0 and the end; white space ends the one before."""
    cuts = [match.end() for match in _MARK.finditer(text) if match.lastgroup is None]
    if cuts and cuts[-1] == len(text):
        cuts.pop()
    return cuts


def split_sentences(text: str) -> list[str]:
    """Return the sentences of ``text``, in order; joined they are ``text``, and none is empty."""
    if not text:
        return []
    return [text[start:end] for start, end in pairwise([0, *sentence_cuts(text), len(text)])]
