"""An explanation as coloured text: for a terminal, and as HTML that stands alone or inside of a page.

Orange speaks for the answer, blue against it; the strongest word has the full colour.
"""

from __future__ import annotations

from html import escape

from rich.text import Text

from kexue_train.downstream.evaluate.attribution.explain import Explanation, Piece

_FOR, _AGAINST = (217, 95, 2), (31, 120, 180)  # told apart with every kind of colour blindness
_START = {"mask": "[MASK] in place of every word", "zero": "zero in place of every word"}


def summary_of(explanation: Explanation) -> str:
    """The answer and the check of completeness, in a line."""
    way = explanation.at_input - explanation.at_baseline
    return (
        f"{explanation.head}: {explanation.answer!r}, probability {explanation.probability:.1%}. Log-odds "
        f"{explanation.at_input:+.3f}, from {explanation.at_baseline:+.3f} with {_START[explanation.baseline]}; "
        f"the words' shares sum to {way:+.3f} within {explanation.gap:.2g} ({explanation.steps} steps)"
    )


def as_terminal_text(explanation: Explanation) -> Text:
    """For rich's console; signs show where colours do not."""
    strongest = _strongest(explanation)
    text = Text()
    for piece in explanation.pieces:
        text.append(piece.text, style="dim" if piece.is_special else _terminal_style(piece, strongest))
    return text


def strongest_words(explanation: Explanation, most: int = 10) -> list[tuple[str, str]]:
    """The words that did most, with their shares."""
    own = [piece for piece in explanation.pieces if not piece.is_special]
    own.sort(key=lambda piece: -abs(piece.value))
    return [(piece.text.strip(), f"{piece.value:+.3f}") for piece in own[:most]]


def as_html(explanation: Explanation) -> str:
    """One ``<figure>`` with styles of its own, for light and dark pages; every word tells its share when pointed at."""
    strongest = _strongest(explanation)
    words = "".join(_html_word(piece, strongest) for piece in explanation.pieces)
    return (
        '<figure style="margin:1em 0;font:16px/1.9 system-ui,sans-serif">'
        f'<p style="margin:0;white-space:pre-wrap;overflow-wrap:anywhere">{words}</p>'
        '<figcaption style="font-size:.8em;opacity:.75">'
        f"{escape(summary_of(explanation))}. Orange: for the answer; blue: against it.</figcaption></figure>\n"
    )


def as_html_page(explanation: Explanation) -> str:
    """The same as a page of its own, without network."""
    return (
        '<!doctype html><html lang="und"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(explanation.answer)}</title></head>"
        f'<body style="max-width:46em;margin:auto;padding:1em">{as_html(explanation)}</body></html>\n'
    )


def _html_word(piece: Piece, strongest: float) -> str:
    if piece.is_special:
        return f'<span style="opacity:.45">{escape(piece.text)}</span>'
    space = piece.text[: len(piece.text) - len(piece.text.lstrip())]
    red, green, blue = _colour(piece)
    share = abs(piece.value) / strongest
    style = f"background:rgba({red},{green},{blue},{0.75 * share:.2f});border-radius:.2em"
    word = escape(piece.text[len(space) :])
    return f'{space}<span style="{style}" title="{piece.value:+.4f}">{word}</span>'


def _terminal_style(piece: Piece, strongest: float) -> str:
    """The colour mixed with black behind white letters, readable on any terminal."""
    share = abs(piece.value) / strongest
    red, green, blue = (round(30 + share * (channel - 30)) for channel in _colour(piece))
    return f"white on rgb({red},{green},{blue})"


def _colour(piece: Piece) -> tuple[int, int, int]:
    return _FOR if piece.value >= 0 else _AGAINST


def _strongest(explanation: Explanation) -> float:
    return max(abs(piece.value) for piece in explanation.pieces) or 1.0
