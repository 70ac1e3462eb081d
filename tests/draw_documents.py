"""Draws the pictures of the documents' ideas: ``python -m tests.draw_documents`` writes them, and a test compares them.

A picture is a list of boxes on a grid and of arrows between them; a box may be wider or lie between two rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from tests.document_pictures import PICTURES, Arrow, Box, Picture

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLUMN, ROW, GAP, HEIGHT, MARGIN, TOP = 196, 92, 30, 62, 24, 60
COLOURS = {"plain": "#ffffff", "data": "#eef4ff", "train": "#fff4ed", "result": "#f4f3ff", "hidden": "#f2f4f7"}
NAME_LETTER, TEXT_LETTER = 8.2, 6.6
"""Widths of a letter of a name and of the text below it, about."""


@dataclass(frozen=True)
class Place:
    """Where a box is drawn, in pixels."""

    left: float
    top: float
    width: float
    height: float

    @property
    def middle(self) -> tuple[float, float]:
        return self.left + self.width / 2, self.top + self.height / 2


def place(box: Box) -> Place:
    left, top = MARGIN + box.column * COLUMN, TOP + box.row * ROW
    return Place(left, top, COLUMN * box.width - GAP, HEIGHT)


def draw(picture: Picture) -> str:
    """Return the picture as SVG, with the colours and letters of the other pictures of the repository."""
    places = {box.name: place(box) for box in picture.boxes}
    width = max(p.left + p.width for p in places.values()) + MARGIN
    height = max(p.top + p.height for p in places.values()) + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-size="14" role="img" '
        f'font-family="system-ui, sans-serif" aria-label="{escape(picture.title)}">'
    )
    parts = [
        head,
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">',
        '<path d="M0 0 8 4 0 8z" fill="#667085"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="12" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="34" fill="#667085">{escape(picture.title)}</text>',
        *(_arrow(arrow, places) for arrow in picture.arrows),
        *(line for box in picture.boxes for line in _box(box, places[box.name])),
    ]
    return "\n".join([*parts, "</svg>", ""])


def _box(box: Box, at: Place) -> list[str]:
    x, y = at.middle
    size = f'x="{at.left:.0f}" y="{at.top:.0f}" width="{at.width:.0f}" height="{at.height:.0f}"'
    lines = [f'<rect {size} rx="8" fill="{COLOURS[box.colour]}" stroke="#98a2b3"/>']
    lines.append(_text(box.name, x, y - 4 if box.text else y + 5, 'fill="#101828" font-weight="600"'))
    return [*lines, _text(box.text, x, y + 16, 'fill="#475467" font-size="12"')] if box.text else lines


def _text(text: str, x: float, y: float, style: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle" {style}>{escape(text)}</text>'


def _arrow(arrow: Arrow, places: dict[str, Place]) -> str:
    """Return a line from the side of one box to the side of another; down or up if they share a column."""
    start, end = places[arrow.start], places[arrow.end]
    (x0, y0), (x1, y1) = start.middle, end.middle
    if abs(x0 - x1) < max(start.width, end.width) / 2:
        down = y1 > y0
        x = x1 if end.width < start.width else x0
        y0, y1 = (start.top + start.height, end.top) if down else (start.top, end.top + end.height)
        path = f"M{x:.0f} {y0:.0f}L{x:.0f} {y1:.0f}"
    else:
        right = x1 > x0
        x0, x1 = (start.left + start.width, end.left) if right else (start.left, end.left + end.width)
        path = f"M{x0:.0f} {y0:.0f}C{(x0 + x1) / 2:.0f} {y0:.0f} {(x0 + x1) / 2:.0f} {y1:.0f} {x1:.0f} {y1:.0f}"
    return f'<path d="{path}" fill="none" stroke="#667085" stroke-width="1.5" marker-end="url(#a)"/>'


def is_readable(picture: Picture) -> bool:
    """Return whether every text fits into its box, the title into the picture, and no box lies on another."""
    places = [place(box) for box in picture.boxes]
    right = max(at.left + at.width for at in places)
    texts = [(picture.title, TEXT_LETTER * 1.15, right)]
    for box, at in zip(picture.boxes, places, strict=True):
        texts += [(box.name, NAME_LETTER, at.width), (box.text, TEXT_LETTER, at.width)]
    apart = all(
        a.left + a.width < b.left or b.left + b.width < a.left or a.top + a.height < b.top or b.top + b.height < a.top
        for number, a in enumerate(places)
        for b in places[:number]
    )
    names = {box.name for box in picture.boxes}
    return apart and len(names) == len(places) and all(len(t.strip()) * letter <= room for t, letter, room in texts)


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        (DOCS / f"{name}.svg").write_text(draw(picture), encoding="utf-8")
