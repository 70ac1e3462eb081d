"""Contrasts by the Web Content Accessibility Guidelines 2.2, level AA, from the colours of the style sheet."""

import re
from importlib.resources import files

import pytest

STYLE = files("kexue_train").joinpath("report/templates/style.css").read_text(encoding="utf-8")
COLOURS = {name: (light, dark) for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\);", STYLE)}
TEXT = [
    *[(ink, ground) for ink in ("ink", "muted", "accent") for ground in ("page", "card")],
    ("ink", "code"),
    ("accent", "mark"),
    ("good", "good-soft"),
    ("good", "card"),
    ("bad", "bad-soft"),
    ("wait", "wait-soft"),
]
DRAWN = [(f"c{number}", "card") for number in range(1, 7)] + [("muted", "card"), ("accent", "page")]


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted(luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_known_colours():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), TEXT)
def test_text_can_be_read(ink, ground, theme):
    assert contrast(COLOURS[ink][theme], COLOURS[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("colour", "ground"), DRAWN)
def test_curves_can_be_seen(colour, ground, theme):
    assert contrast(COLOURS[colour][theme], COLOURS[ground][theme]) >= 3


def test_every_colour_has_both_themes():
    rest = re.sub(r":root \{.*?\n\}", "", STYLE, count=1, flags=re.DOTALL)
    assert re.findall(r"#[0-9a-f]{3,6}\b", rest) == ["#fff"]  # paper
    assert set(re.findall(r"var\(--([a-z][\w-]*)\)", STYLE)) - COLOURS.keys() == {
        "sans",
        "mono",
        "share",
        "text",
        "label",
        "place",
    }
