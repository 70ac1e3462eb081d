"""The page, its pictures, the kept results and the list of claims agree."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from claims.all_claims import CLAIMS
from claims.claim import Bars, Claim, Lines, at
from claims.page import render_page
from claims.picture import draw
from claims.results import Entry, read_results

AGAIN = "write it anew: python -m claims --minutes 0 --json docs/claims/results.json --page docs/claims.md"


@pytest.fixture(scope="module")
def entries(repository: Path) -> dict[str, Entry]:
    return read_results(repository / "docs" / "claims" / "results.json")


def test_every_claim_has_a_file_and_every_file_is_in_the_list(repository: Path) -> None:
    files = {path.stem for path in (repository / "claims" / "posts").glob("*.py")} - {"__init__"}
    assert {claim.name.replace("-", "_") for claim in CLAIMS} == files
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def measured(entries: dict[str, Entry]) -> list[Claim]:
    """The claims with kept results; the page says of the others that nobody has measured them yet."""
    return [claim for claim in CLAIMS if claim.name in entries]


def test_what_is_kept_are_claims_with_all_their_seeds(entries) -> None:
    assert list(entries) == [claim.name for claim in measured(entries)]
    for claim in measured(entries):
        assert {len(values) for values in entries[claim.name].outcome.figures.values()} == {claim.seeds}


def test_the_page_is_written_from_the_list_and_the_results(repository: Path, entries) -> None:
    page = (repository / "docs" / "claims.md").read_text(encoding="utf-8")
    assert page == render_page(CLAIMS, entries, "claims"), AGAIN


def test_the_verdicts_follow_from_the_kept_figures(entries) -> None:
    judged = {claim.name: claim.judge(entries[claim.name].outcome.figures) for claim in measured(entries)}
    assert judged == {name: entry.outcome.status for name, entry in entries.items()}


def test_every_picture_is_drawn_from_the_kept_figures(repository: Path, entries) -> None:
    for claim in measured(entries):
        picture = (repository / "docs" / "claims" / f"{claim.name}.svg").read_text(encoding="utf-8")
        assert picture == draw(claim, entries[claim.name].outcome.figures), AGAIN
    kept = {path.stem for path in (repository / "docs" / "claims").glob("*.svg")}
    assert kept == entries.keys()


def boxes(svg: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(svg).iter() if element.get("class") == "bar"]


def test_bars_are_as_long_as_their_figures(make_claim) -> None:
    claim: Claim = make_claim(picture=Bars(("a", "b"), "nats"))
    first, second = boxes(draw(claim, {"a": [1.0, 3.0], "b": [4.0, 4.0]}))
    assert float(second.attrib["width"]) == pytest.approx(2 * float(first.attrib["width"]), rel=0.01)


def test_bars_of_zeros_and_below_zero_are_drawn(make_claim) -> None:
    claim: Claim = make_claim(picture=Bars(("a", "b"), "nats", mark=0.0))
    assert len(boxes(draw(claim, {"a": [0.0], "b": [0.0]}))) == 2
    left, right = boxes(draw(claim, {"a": [-1.0], "b": [1.0]}))
    assert float(left.attrib["x"]) < float(right.attrib["x"])


@pytest.mark.parametrize("log", [False, True])
def test_curves_have_a_dot_for_each_seed_and_labels_apart(make_claim, log: bool) -> None:
    claim: Claim = make_claim(picture=Lines(("p", "q"), (1, 2), "tokens", "nats", log=log))
    found = {at(series, x): [1.0, 1.5] for series in "pq" for x in (1, 2)}
    root = ET.fromstring(draw(claim, found))
    assert len([e for e in root.iter() if e.tag.endswith("circle")]) == 8
    ends = [float(e.attrib["y"]) for e in root.iter() if e.tag.endswith("text") and e.text in ("p", "q")]
    assert abs(ends[0] - ends[1]) >= 16


def test_what_a_claim_says_is_escaped_in_its_picture(make_claim) -> None:
    root = ET.fromstring(draw(make_claim(sentence='a < b & "c"'), {"gain": [1.0]}))
    assert 'a < b & "c"' in [*root.attrib.values(), *(e.text for e in root.iter())]
