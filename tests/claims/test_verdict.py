"""Verdicts follow from figures and thresholds that were fixed before."""

from __future__ import annotations

import math

import pytest

from claims.verdict import Spread, above, all_of, below, within


def test_the_interval_is_that_of_student() -> None:
    # t of 95 % with 2 degrees of freedom is 4.303; three values one apart have the deviation 1.
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.deviation) == (2.0, 1.0)
    assert spread.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert str(spread) == "2 ± 1"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 2.1, 2.05], "confirmed"),
        ([0.2, 0.1, 0.15], "refuted"),
        ([0.7, 0.71, 0.7], "undecidable here"),  # between the thresholds
        ([0.0, 2.0, 4.0], "undecidable here"),  # the mean is high enough, but the seeds differ by more
        ([2.0], "undecidable here"),  # one seed says nothing about the next
        ([math.nan, 2.0, 2.0], "undecidable here"),
    ],
)
def test_a_figure_has_to_be_on_one_side_with_its_whole_interval(values: list[float], expected: str) -> None:
    assert above(values, confirms=1.0, refutes=0.5) == expected
    assert below([-value for value in values], confirms=-1.0, refutes=-0.5) == expected


def test_thresholds_that_cross_are_refused() -> None:
    with pytest.raises(ValueError, match="would do both"):
        above([1.0, 1.0], confirms=0.0, refutes=1.0)


@pytest.mark.parametrize(
    ("value", "expected"), [(1.0, "confirmed"), (1.5, "refuted"), (0.5, "refuted"), (1.1, "undecidable here")]
)
def test_a_range_is_left_on_either_side(value: float, expected: str) -> None:
    assert within([value - 0.05, value, value + 0.05], 0.85, 1.15) == expected


def test_one_refuted_part_refutes_and_all_have_to_be_confirmed() -> None:
    assert all_of("confirmed", "refuted", "undecidable here") == "refuted"
    assert all_of("confirmed", "undecidable here") == "undecidable here"
    assert all_of("confirmed", "confirmed") == "confirmed"
