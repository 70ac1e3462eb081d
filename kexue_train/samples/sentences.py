"""Where sentences begin, in Chinese and English; every character belongs to exactly one sentence.

A sentence ends, with the quotes and brackets that close after it and the white space that follows,

* at 。！？； and the full stops of other scripts; at ! ? between Chinese characters;
* at . ! ? before white space and at … unless the text continues in lower case; not at the point of an abbreviation, an
  initial or a number that counts ("Dr.", "U.S.", "No. 5", "1. ", "2.)"), nor at the ! of a name ("Yahoo!"), nor between
  the points of ". . .";
* at a blank line.

It does not end within a title (《…！》), nor within a bracket or quotation that stands in the middle of it: one that
opens right behind a word and closes soon; nor behind a quotation if a comma or a Japanese particle follows.

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
_NAMES = ("Yahoo", "Yum", "Jeopardy", "Kahoot")  # the ! belongs to them
_LETTER = r"[^\W\d_]"
_IS_NO_ABBREVIATION = "".join(rf"(?<!\b(?i:{words})\.)" for words in _ABBREVIATIONS)
_IS_NO_NAME = "".join(f"(?<!{name}!)" for name in _NAMES) + r"(?!(?<=!)\s+(?:Inc|Corp|Co|Ltd|LLC|Brands|Group)\b)"
_NUMERALS = (r"\d", r"\d\d", "[IVXivx]{2}", "[IVXivx]{3}", "[IVXivx]{4}")  # that count; one letter is an initial
_IS_COUNTED = ("No", "no", "Vol", "vol", "Fig", "fig")  # "No. 5." is no number of a list
_IS_NO_NUMERAL = "".join(
    rf"(?<!^{numeral}\.)(?!\)(?:(?<=^{numeral}\.\))|(?<=[\s(]{numeral}\.\))))"
    rf"(?:(?<![.!?:;]\s{numeral}\.)" + "".join(rf"|(?<=\b{word}\.\s{numeral}\.)" for word in _IS_COUNTED) + ")"
    for numeral in _NUMERALS
)
_IS_FULL_STOP = (
    rf"(?<![\s.(\[\"“]{_LETTER}\.)(?<!\A{_LETTER}\.)"  # initials, U.S., e.g., p. 5
    rf"{_IS_NO_ABBREVIATION}(?!(?<=\b[Nn][o°º]\.)\s+\d){_IS_NO_NUMERAL}{_IS_NO_NAME}"
)
_MORE_POINTS = rf"\s++[.!?…]++{_CLOSING}(?:\s|\Z)"  # of ". . ."
_CONTINUES = r"(?<=[\"'”’»」』】）》〉)\]])[，、；：,;:\u3041-\u309f]"


def _inside(brackets: str) -> str:
    """Return the pattern of what follows an opening bracket or quotation mark up to the one that closes it."""
    opening, closing = map(re.escape, brackets)
    return rf"[^{opening}{closing}\n]{{0,200}}+{closing}"


# What is passed over ends in an empty group, which tells it from an end.
_PASSED_OVER = (
    *(rf"(?<={pair[0]}){_inside(pair)}()" for pair in ("《》", "〈〉")),
    *(rf"(?<=\w{re.escape(pair[0])}){_inside(pair)}()" for pair in ("（）", "【】", "()", "[]")),
    *(rf"(?<=[\w,;:] {re.escape(pair[0])})(?![.…]){_inside(pair)}()" for pair in ("()", "[]")),
    # A quotation may end its sentence too: with a full stop, or with another mark before white space.
    *(
        rf"(?<=\w{pair[0]}){_inside(pair)}(?:(?<=[。｡]{pair[1]})(?!{_CONTINUES})\s*+|(?<=[！？!?.…]{pair[1]})\s++(?![{_LOWER}])|())"
        for pair in ("「」", "『』", "“”")
    ),
    rf"(?<=\w “){_inside('“”')}(?:(?<=[.!?…]”)\s++(?![{_LOWER}])|())",
    r"(?<=[^.]\s\.) \. \.(?! ?\.)()",  # three points by themselves leave out words, not the end
)
_MARK = re.compile(
    rf"[{_WIDE}….!?\n《〈（「『【“(\[](?:"  # one set of characters first: the scan for it is fast
    rf"(?<=[{_WIDE}])[{_WIDE}….!?]*+{_CLOSING}(?!{_CONTINUES})\s*+"
    rf"|(?<=…)…*+{_CLOSING}(?!{_CONTINUES})\s*+(?![{_WIDE}….!?{_LOWER}])"
    rf"|{'|'.join(_PASSED_OVER)}"
    rf"|(?<=[.!?])(?=[.!?…]*+{_CLOSING}\s++[^{_LOWER}])(?![.!?…]*+{_MORE_POINTS})"
    rf"(?:(?=[.!?…])|{_IS_FULL_STOP})[.!?…]*+{_CLOSING}\s++"
    rf"|(?<=[!?]){_IS_NO_NAME}[!?]*+{_CLOSING}(?={_CHINESE})"
    r"|(?<=\n)[^\S\n]*+\n\s*+"
    r"|(?<=[….!?])[….!?]*+())",  # a run of marks is passed over at once, or it would cost its square
    re.MULTILINE,
)


def sentence_cuts(text: str) -> list[int]:
    """Return the rising offsets at which sentences begin, without 0 and the end; white space ends the one before."""
    cuts = [match.end() for match in _MARK.finditer(text) if match.lastindex is None]
    if cuts and cuts[-1] == len(text):
        cuts.pop()
    return cuts


def split_sentences(text: str) -> list[str]:
    """Return the sentences of ``text``, in order; joined they are ``text``, and none is empty."""
    if not text:
        return []
    return [text[start:end] for start, end in pairwise([0, *sentence_cuts(text), len(text)])]
