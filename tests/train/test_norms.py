"""Norms of a step against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kexue_train.optim import Tiger, build_param_groups
from kexue_train.train.monitor.norms import StepNorms


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(11, 6), torch.nn.Linear(6, 5), torch.nn.Linear(5, 3))


def _step(model: torch.nn.Module, optimizer: Tiger) -> None:
    for _ in range(optimizer.accumulation_steps):
        model(torch.arange(8)).square().sum().backward()
        optimizer.step()


def _norms(tensors: dict[str, list[torch.Tensor]], kind: str) -> dict[str, float]:
    def norm(group: list[torch.Tensor]) -> float:
        return float(np.sqrt(sum((tensor.double().numpy() ** 2).sum() for tensor in group)))

    return {f"{kind}_norm_{role}": norm(group) for role, group in tensors.items()}


def _by_role(model: torch.nn.Sequential, of=lambda param: param) -> dict[str, list[torch.Tensor]]:
    table, first, last = model
    params = {"embedding": [table.weight], "matrix": [first.weight, last.weight], "vector": [first.bias, last.bias]}
    return {role: [of(param).detach().clone() for param in group] for role, group in params.items()}


def test_norms_are_those_of_the_step_that_was_asked_for(model):
    optimizer = Tiger(build_param_groups(model), lr=0.1, accumulation_steps=2)
    norms = StepNorms(optimizer)
    _step(model, optimizer)
    assert norms.take() == {}
    before = _by_role(model)
    norms.wanted = True
    _step(model, optimizer)
    after = _by_role(model)
    moved = {role: [b - a for a, b in zip(before[role], after[role], strict=True)] for role in before}
    momenta = _by_role(model, of=optimizer.momentum)
    expected = _norms(after, "parameter") | _norms(moved, "update") | _norms(momenta, "momentum")
    found = norms.take()
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-5)
    _step(model, optimizer)
    assert norms.take() == {}


def test_measuring_changes_no_bit_and_keeps_no_copy(model):
    import copy

    other = copy.deepcopy(model)
    optimizers = [Tiger(build_param_groups(each), lr=0.1) for each in (model, other)]
    norms = StepNorms(optimizers[0])
    for _ in range(3):
        norms.wanted = True
        for each, optimizer in zip((model, other), optimizers, strict=True):
            _step(each, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert not norms._before
