"""Which checkpoints are kept, for any history."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.train.checkpoint.folder import Retention, best_step

LOSSES = st.one_of(st.none(), st.sampled_from([1.0, 2.0, 3.0, math.nan, math.inf]))
HISTORIES = st.dictionaries(st.integers(1, 60), LOSSES, max_size=30)


def _best_of_all(losses):
    best = None
    for step in sorted(losses):
        loss = losses[step]
        if loss is not None and math.isfinite(loss) and (best is None or loss < losses[best]):
            best = step
    return best


@given(HISTORIES, st.integers(1, 4), st.one_of(st.none(), st.integers(1, 20)))
def test_step_by_step_the_newest_the_multiples_and_the_best_of_all_ever_are_there(losses, newest, every):
    rules, there, ever = Retention(newest, every), {}, {}
    for step in sorted(losses):
        there[step] = ever[step] = losses[step]
        there = {step: there[step] for step in rules.kept(there)}
        expected = set(sorted(ever)[-newest:]) | {s for s in ever if every and s % every == 0}
        expected |= {_best_of_all(ever)} - {None}
        assert set(there) == expected


@pytest.mark.parametrize(
    ("losses", "best"),
    [({}, None), ({1: None, 2: math.nan}, None), ({1: 2.0, 2: 1.0, 3: 1.0}, 2), ({1: math.inf, 2: 9.0}, 2)],
)
def test_the_best_is_the_earliest_of_lowest_finite_loss(losses, best):
    assert best_step(losses) == best
