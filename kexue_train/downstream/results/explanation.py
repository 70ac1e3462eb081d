"""Which words made a model answer as it did: the shares of a text's tokens, as coloured text and as a file.

Orange speaks for the answer, blue against it; the strongest word has the full colour.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Literal

from kexue_train.downstream.results.result import Headline, ResultFailure, ResultPart, ResultTable, Score
from kexue_train.downstream.settings import HeadName, PathStart

if TYPE_CHECKING:
    from rich.text import Text

_FOR, _AGAINST = (217, 95, 2), (31, 120, 180)  # told apart with every kind of colour blindness
_START = {"mask": "[MASK] in place of every word", "zero": "zero in place of every word"}


class TokenShare(ResultPart):
    """A token and what it did."""

    text: str
    """As it stands in the text, with the space before it; together they are the text with its special tokens."""
    value: float
    """Its share of ``at_input - at_baseline``; above 0 it speaks for the answer."""
    is_special: bool
    """Whether it stays along the path, with a value of 0."""


class Explanation(ResultPart):
    """Why an answer was given: the contents of the file."""

    kind: Literal["explanation"] = "explanation"
    head: HeadName
    answer: str
    """The label or word that is explained."""
    probability: float
    """Probability of the answer."""
    baseline: PathStart
    """Where the path starts."""
    at_input: float
    """Log-odds of the answer."""
    at_baseline: float
    """Log-odds of the answer at the start of the path."""
    gap: float
    """|Σ values - (at_input - at_baseline)|: what the steps missed."""
    steps: int
    """Points of the path; doubled until ``gap`` is below 1 % of the way."""
    pieces: list[TokenShare]

    @property
    def failures(self) -> list[ResultFailure]:
        """Nothing: an answer that cannot be explained has no file."""
        return []

    def tables(self) -> list[ResultTable]:
        """Return the strongest words."""
        rows = [list(row) for row in strongest_words(self)]
        return [ResultTable(f"Words behind the answer {self.answer!r}", ["word", "share"], rows)]

    def notes(self) -> list[str]:
        """Return the answer and the check of completeness."""
        return [summary_of(self)]

    def scores(self) -> list[Score]:
        """Return nothing: an explanation measures no model."""
        return []

    def headlines(self) -> list[Headline]:
        """Return nothing: an explanation is about one text."""
        return []


def summary_of(explanation: Explanation) -> str:
    """Return the answer and the check of completeness, in a line."""
    way = explanation.at_input - explanation.at_baseline
    return (
        f"{explanation.head}: {explanation.answer!r}, probability {explanation.probability:.1%}. Log-odds "
        f"{explanation.at_input:+.3f}, from {explanation.at_baseline:+.3f} with {_START[explanation.baseline]}; "
        f"the words' shares sum to {way:+.3f} within {explanation.gap:.2g} ({explanation.steps} steps)"
    )


def as_terminal_text(explanation: Explanation) -> Text:
    """Return coloured text for rich's console."""
    from rich.text import Text  # noqa: PLC0415  # only for a terminal

    strongest = _strongest(explanation)
    text = Text()
    for piece in explanation.pieces:
        text.append(piece.text, style="dim" if piece.is_special else _terminal_style(piece, strongest))
    return text


def strongest_words(explanation: Explanation, most: int = 10) -> list[tuple[str, str]]:
    """Return the words that did most, with their shares."""
    own = [piece for piece in explanation.pieces if not piece.is_special]
    own.sort(key=lambda piece: -abs(piece.value))
    return [(piece.text.strip(), f"{piece.value:+.3f}") for piece in own[:most]]


def as_html(explanation: Explanation) -> str:
    """Return one ``<figure>`` with its own styles, for light and dark pages; pointing at a word shows its share."""
    strongest = _strongest(explanation)
    words = "".join(_html_word(piece, strongest) for piece in explanation.pieces)
    return (
        '<figure style="margin:1em 0;font:16px/1.9 system-ui,sans-serif">'
        f'<p style="margin:0;white-space:pre-wrap;overflow-wrap:anywhere">{words}</p>'
        '<figcaption style="font-size:.8em;opacity:.75">'
        f"{escape(summary_of(explanation))}. Orange: for the answer; blue: against it.</figcaption></figure>\n"
    )


def as_html_page(explanation: Explanation) -> str:
    """Return the figure as a page of its own, which needs no network."""
    return (
        '<!doctype html><html lang="und"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(explanation.answer)}</title></head>"
        f'<body style="max-width:46em;margin:auto;padding:1em">{as_html(explanation)}</body></html>\n'
    )


def _html_word(piece: TokenShare, strongest: float) -> str:
    if piece.is_special:
        return f'<span style="opacity:.45">{escape(piece.text)}</span>'
    space = piece.text[: len(piece.text) - len(piece.text.lstrip())]
    red, green, blue = _colour(piece)
    share = abs(piece.value) / strongest
    style = f"background:rgba({red},{green},{blue},{0.75 * share:.2f});border-radius:.2em"
    word = escape(piece.text[len(space) :])
    return f'{space}<span style="{style}" title="{piece.value:+.4f}">{word}</span>'


def _terminal_style(piece: TokenShare, strongest: float) -> str:
    """Return the colour mixed with black behind white letters, which is readable on any terminal."""
    share = abs(piece.value) / strongest
    red, green, blue = (round(30 + share * (channel - 30)) for channel in _colour(piece))
    return f"white on rgb({red},{green},{blue})"


def _colour(piece: TokenShare) -> tuple[int, int, int]:
    return _FOR if piece.value >= 0 else _AGAINST


def _strongest(explanation: Explanation) -> float:
    return max(abs(piece.value) for piece in explanation.pieces) or 1.0
