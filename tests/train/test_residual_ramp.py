"""The branches' growth over the first steps of a training."""

from __future__ import annotations

import pytest

from kexue_train.train import loop
from kexue_train.train.loop import set_residual_scale
from tests.train.tiny_training import curve, final_tensors, make_config, same_bits, train_here


def test_the_ramp_rises_evenly_from_above_0_to_1_and_stays(samples):
    train = make_config(residual_ramp_steps=4).train
    assert [train.residual_scale(step) for step in (1, 2, 3, 4, 5, 8)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert make_config().train.residual_scale(1) == 1.0


def test_every_step_runs_at_its_scale(samples, tmp_path, monkeypatch):
    scales = []

    def remember(model, alpha):
        scales.append(alpha)
        set_residual_scale(model, alpha)

    monkeypatch.setattr(loop, "set_residual_scale", remember)
    train_here(make_config(residual_ramp_steps=4), samples, tmp_path / "out")
    assert scales == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_a_ramp_changes_the_training_and_a_ramp_of_one_step_does_not(trained, samples, tmp_path):
    for steps in (1, 6):
        train_here(make_config(residual_ramp_steps=steps), samples, tmp_path / str(steps))
    assert same_bits(final_tensors(tmp_path / "1"), final_tensors(trained))
    first, plain = (curve(folder, "train")[0]["loss"] for folder in (tmp_path / "6", trained))
    assert first != pytest.approx(plain, rel=1e-6)


def test_the_ramp_is_part_of_the_recipe():
    reason = make_config(residual_ramp_steps=3).recipe("samples").difference(make_config().recipe("samples"))
    assert reason == "train.residual_ramp_steps changed from 0 to 3"
