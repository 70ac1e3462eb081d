"""A case small enough to have all gradients whole: how far weights from sketches are from the best ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kexue_train.train.weighting import sketch as module
from kexue_train.train.weighting.gram_solvers import min_norm_shares


def gradients(tasks: int) -> Tensor:
    """Gradients of 20,000 elements and about one length that pull apart, [tasks, 20000]; their cosines are -0.3."""
    drawn = torch.randn(tasks, 20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    common = drawn.mean(0)
    return drawn - (0.4 if tasks == 3 else 0.35) * common


def draw(whole: Tensor, seeds: int) -> tuple[Tensor, Tensor]:
    """For each seed how much longer u is than the shortest, relative; and the least ⟨g_i, u⟩/‖u‖² of all tasks."""
    best = (min_norm_shares(whole @ whole.T) @ whole).norm()
    longer, served = [], []
    for seed in range(seeds):
        sketches = torch.zeros(len(whole), module.SKETCH_SIZE)
        for sketch, gradient in zip(sketches, whole, strict=True):
            module.add_sketch_(sketch, gradient, seed=seed, tensor=0)
        wide = sketches.double()
        u = min_norm_shares(wide @ wide.T) @ whole
        longer.append(u.norm() / best - 1)
        served.append((whole @ u).min() / (u @ u))
    return torch.stack(longer), torch.stack(served)


@pytest.mark.parametrize("tasks", [2, 3])
def test_a_thousand_numbers_find_the_shortest_combination_to_a_thousandth_and_hurt_no_task(tasks):
    longer, served = draw(gradients(tasks), seeds=60)
    assert float(longer.median()) < 0.001
    # The shares of n tasks have n - 1 degrees of freedom; each costs 1/2m of the length in the mean.
    expected = (tasks - 1) / (2 * module.SKETCH_SIZE)
    assert float(longer.mean()) == pytest.approx(expected, abs=4 * float(longer.std()) / 60**0.5)
    assert float(longer.min()) > -1e-9
    assert float(served.min()) > 0


def test_a_quarter_of_the_numbers_is_four_times_as_far_off(monkeypatch):
    many, _ = draw(gradients(3), seeds=60)
    monkeypatch.setattr(module, "SKETCH_SIZE", 251)
    monkeypatch.setattr(module, "_PERIOD", 16 * 251)
    few, _ = draw(gradients(3), seeds=60)
    assert 2 < float(few.mean() / many.mean()) < 8
