"""Draws docs/structure.svg from the code: the packages in the order of the import contract, each with its docstring.

Run it after a change of either: ``python -m tests.draw_structure``. A test compares the picture with the code.
"""

from __future__ import annotations

import ast
import tomllib
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "structure.svg"
# The rooms of the house; what is in no other is the flow of data.
COMMANDS, WING, GROUND = {"cli", "pipeline"}, {"report", "downstream"}, {"executor", "metrics", "foundation"}
COLOURS = {"commands": "#f4f3ff", "after the run": "#fff4ed", "the flow of data": "#eef4ff", "the ground": "#f2f4f7"}
WIDTH, ROW, LEFT = 1000, 58, 150
LETTER = 6.5
"""Width of a letter of the small text, about."""


def layers() -> list[list[str]]:
    """Return the packages of each layer, from the top down, as ``pyproject.toml`` orders them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    direction = next(contract for contract in contracts if contract["id"] == "direction")
    return [[name.strip() for name in layer.split("|")] for layer in direction["layers"]]


def summary_of(package: str) -> str:
    """Return the first line of the package's docstring, without markup."""
    tree = ast.parse((ROOT / "kexue_train" / package / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0].replace("``", "")


def room_of(package: str) -> str:
    if package in COMMANDS:
        return "commands"
    if package in WING:
        return "after the run"
    return "the ground" if package in GROUND else "the flow of data"


def draw() -> str:
    """Return the picture; a package may import those below it, never one beside or above it."""
    rows = layers()
    height = ROW * len(rows) + 70
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="system-ui, sans-serif" font-size="15" role="img" '
            'aria-label="The packages of kexue_train; imports go down only">'
        ),
        f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff"/>',
        (
            '<text x="24" y="34" fill="#667085">kexue_train: imports go down only. flows/ stands above; it alone knows '
            "Prefect.</text>"
        ),
    ]
    seen = ""
    for number, names in enumerate(rows):
        top, width = 54 + number * ROW, (WIDTH - LEFT - 24 - 10 * (len(names) - 1)) / len(names)
        if (room := room_of(names[0])) != seen:
            parts.append(f'<text x="24" y="{top + 29}" fill="#475467" font-size="13">{room}</text>')
            seen = room
        for column, name in enumerate(names):
            left = LEFT + column * (width + 10)
            letters = int((width - 28) / LETTER)
            text = summary_of(name)
            text = text if len(text) <= letters else text[: letters - 1].rsplit(" ", 1)[0].rstrip(",:;") + " …"
            parts += [
                (
                    f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="48" rx="8" fill="{COLOURS[room]}" '
                    'stroke="#98a2b3"/>'
                ),
                f'<text x="{left + 14:.0f}" y="{top + 20}" fill="#101828" font-weight="600">{escape(name)}</text>',
                f'<text x="{left + 14:.0f}" y="{top + 38}" fill="#475467" font-size="12.5">{escape(text)}</text>',
            ]
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
