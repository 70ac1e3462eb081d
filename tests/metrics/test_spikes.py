"""When a loss is a spike."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.metrics.spikes import SpikeDetector
from kexue_train.train.checkpoint.format import TrainerState


def _learning_curve(steps: int, noise: float, seed: int) -> list[float]:
    """From 9 nats to 2, as a power law, with normal noise."""
    draws = np.random.default_rng(seed).normal(scale=noise, size=steps)
    return [2 + 7 * (1 + step / 50) ** -0.7 + float(draw) for step, draw in enumerate(draws)]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 0.3])
def test_an_ordinary_curve_has_no_spike(noise):
    for seed in range(20):
        detector = SpikeDetector()
        assert not any(map(detector.is_spike, _learning_curve(1000, noise, seed)))


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_a_jump_is_a_spike_the_moment_it_comes_and_not_remembered(noise):
    detector, curve = SpikeDetector(), _learning_curve(500, noise, 1)
    assert not any(map(detector.is_spike, curve))
    before = detector.remembered
    assert detector.is_spike(curve[-1] + max(10.5 * 1.4826 * noise, 0.5))
    assert detector.remembered == before == tuple(curve[-64:])


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_spike_from_the_first_step_on(loss):
    assert SpikeDetector().is_spike(loss)


def test_the_first_losses_may_jump_as_they_like():
    detector = SpikeDetector()
    assert not any(map(detector.is_spike, [1.0, 50.0] * 8))


@given(st.lists(st.floats(0, 100), max_size=100), st.lists(st.floats(0, 1000), max_size=20), st.integers(0, 100))
def test_what_a_checkpoint_remembers_is_all_that_decisions_depend_on(before, after, cut):
    whole = SpikeDetector()
    for loss in before:
        whole.is_spike(loss)
    state = TrainerState(step=1, recent_losses=whole.remembered)
    resumed = SpikeDetector(TrainerState(**json.loads(json.dumps(state.__dict__))).recent_losses)
    assert [whole.is_spike(loss) for loss in after] == [resumed.is_spike(loss) for loss in after]
    assert whole.remembered == resumed.remembered
