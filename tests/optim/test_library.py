"""Library optimizers against NumPy transcriptions of what was published."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from kexue_train.foundation.errors import ResourceError
from kexue_train.optim import build_param_groups
from kexue_train.optim.library import build_library_optimizer

Array = NDArray[np.float64]
LR, DECAY, STEPS = 0.01, 0.1, 4


class Tiny(nn.Module):
    """One parameter of each role; the table is longer than 10."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Embedding(6, 5)
        self.dense = nn.Linear(5, 3)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
        self.table.weight.data *= 20


def adamw(theta: Array, gradients: list[Array], decay: float) -> Array:
    """Loshchilov and Hutter, algorithm 2 with the usual α = lr."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        theta = theta - LR * (step + decay * theta)
    return theta


def lamb(theta: Array, gradients: list[Array], decay: float) -> Array:
    """You et al., algorithm 2 with φ(z) = z, without bias correction."""
    m, v = np.zeros_like(theta), np.zeros_like(theta)
    for g in gradients:
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (np.sqrt(v) + 1e-6) + decay * theta
        theta = theta - LR * np.linalg.norm(theta) / np.linalg.norm(step) * step
    return theta


def lion(theta: Array, gradients: list[Array], decay: float) -> Array:
    """Chen et al., algorithm 2."""
    m = np.zeros_like(theta)
    for g in gradients:
        theta = theta - LR * (np.sign(0.9 * m + 0.1 * g) + decay * theta)
        m = 0.99 * m + 0.01 * g
    return theta


RULES = {"adamw": adamw, "lamb": lamb, "lion": lion}
# The library adds its 1e-6 also to the norm of LAMB's step.
TOLERANCE = {"adamw": 1e-12, "lamb": 1e-6, "lion": 1e-12}


def needs(name: str) -> None:
    if name != "adamw":
        pytest.importorskip("pytorch_optimizer", reason="the extra 'optimizers' is not installed")


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("name", RULES)
def test_steps_are_the_published_ones_and_vectors_do_not_decay(name, steps):
    needs(name)
    model = Tiny()
    before = [p.detach().numpy().copy() for p in model.parameters()]
    generator = np.random.default_rng(1)
    gradients = [[generator.normal(size=p.shape) for p in model.parameters()] for _ in range(steps)]
    optimizer = build_library_optimizer(name, build_param_groups(model), lr=LR, weight_decay=DECAY)
    for step in gradients:
        for p, g in zip(model.parameters(), step, strict=True):
            p.grad = torch.from_numpy(g)
        optimizer.step()
    for index, (p, theta) in enumerate(zip(model.parameters(), before, strict=True)):
        expected = RULES[name](theta, [step[index] for step in gradients], DECAY if p.ndim > 1 else 0.0)
        np.testing.assert_allclose(p.detach().numpy(), expected, rtol=TOLERANCE[name], atol=TOLERANCE[name])


@pytest.mark.parametrize("name", RULES)
def test_given_groups_stay_as_they_are_and_a_schedule_can_write_the_learning_rate(name):
    needs(name)
    model = Tiny()
    groups = build_param_groups(model)
    optimizer = build_library_optimizer(name, groups, lr=LR, weight_decay=DECAY)
    assert not any("lr" in group or "weight_decay" in group for group in groups)
    assert [(g["role"], g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        ("matrix", LR, DECAY),
        ("embedding", LR, DECAY),
        ("vector", LR, 0.0),
    ]
    before = [p.detach().clone() for p in model.parameters()]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", RULES)
def test_other_decays_of_the_moments_take_effect(name):
    needs(name)
    optimizer = build_library_optimizer(name, build_param_groups(Tiny()), lr=LR, weight_decay=DECAY, betas=(0.95, 0.98))
    assert all(group["betas"] == (0.95, 0.98) for group in optimizer.param_groups)


@pytest.mark.parametrize("name", ["lamb", "lion"])
def test_a_missing_library_is_named_with_its_remedy(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ResourceError, match=rf"optimizer {name} .*pip install 'kexue_train\[optimizers\]'"):
        build_library_optimizer(name, build_param_groups(Tiny()), lr=LR, weight_decay=DECAY)


def test_adamw_needs_no_other_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    built = build_library_optimizer("adamw", build_param_groups(Tiny()), lr=LR, weight_decay=DECAY)
    assert isinstance(built, torch.optim.AdamW)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no optimizer 'sgd'; there are adamw, lamb, lion"):
        build_library_optimizer("sgd", [], lr=LR, weight_decay=DECAY)
