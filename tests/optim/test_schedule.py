"""The schedules against NumPy's interpolation and points worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.optim.schedule import cosine_decay, piecewise_linear

KNOTS = st.dictionaries(st.integers(0, 1000), st.floats(0, 2), min_size=1, max_size=6)


@given(knots=KNOTS, step=st.integers(0, 1200))
def test_equals_numpy_interpolation(knots, step):
    points = sorted(({0: 0.0} | knots).items())
    expected = np.interp(step, [p[0] for p in points], [p[1] for p in points])
    assert piecewise_linear(knots, step) == pytest.approx(expected, abs=1e-12)


@given(knots=KNOTS)
def test_knots_are_hit_exactly(knots):
    assert all(piecewise_linear(knots, step) == value for step, value in knots.items())


def test_published_example_at_points_worked_out_by_hand():
    knots = {10_000: 1.0, 40_000: 0.5, 160_000: 0.1, 320_000: 0.01}
    values = [piecewise_linear(knots, step) for step in (0, 5_000, 10_000, 25_000, 100_000, 320_000, 10**9)]
    assert values == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.3, 0.01, 0.01])


def test_a_knot_at_zero_replaces_the_warm_up():
    assert piecewise_linear({0: 1.0, 10: 0.0}, 0) == 1.0


def test_the_cosine_at_points_worked_out_by_hand():
    # cos(60°) = 1/2, cos(90°) = 0, cos(120°) = -1/2
    values = [cosine_decay(step, 300, 0.2) for step in (0, 100, 150, 200, 300, 301, 10**9)]
    assert values == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2, 0.2])


@given(num_steps=st.integers(1, 50), final=st.floats(0, 1))
def test_the_cosine_never_rises_and_is_symmetric_about_its_middle(num_steps, final):
    values = np.array([cosine_decay(step, num_steps, final) for step in range(num_steps + 1)])
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(values + values[::-1], 1 + final, atol=1e-12)
