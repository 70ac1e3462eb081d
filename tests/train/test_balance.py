"""MLM and NSP in units of their own: what a unit may and may not change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kexue_train.batches.dataset import SampleDataset
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.objective import combine, loss_units


@pytest.fixture(scope="module")
def dataset(samples):
    return SampleDataset(samples)


HEADS = pretraining_heads(ObjectiveConfig(nsp_weight=0.5))
NATS = (1.0, 1.0)


def heads(nsp_weight: float):
    return pretraining_heads(ObjectiveConfig(nsp_weight=nsp_weight))


def losses() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A parameter and two losses that depend on it."""
    x = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    return x, x.exp().sum(), (x - 2).square().sum()


def gradient(units: tuple[float, ...] | None, *, mlm_factor: float = 1.0) -> torch.Tensor:
    x, mlm, nsp = losses()
    return torch.autograd.grad(combine([mlm_factor * mlm, nsp], HEADS, units), x)[0]


def test_plain_units_give_the_weighted_sum():
    _, mlm, nsp = losses()
    assert combine([mlm, nsp], HEADS, NATS) == mlm + 0.5 * nsp


def test_a_unit_makes_the_scale_of_a_loss_irrelevant():
    torch.testing.assert_close(gradient((2.0, 1.0), mlm_factor=2.0), gradient(NATS))
    torch.testing.assert_close(gradient(None, mlm_factor=7.0), gradient(None))
    assert not torch.allclose(gradient(NATS, mlm_factor=7.0), gradient(NATS))


def test_a_loss_in_units_of_itself_is_the_number_of_tasks_and_falls_as_its_logarithm():
    x, mlm, nsp = losses()
    loss = combine([mlm, nsp], heads(1.0), None)
    assert loss.item() == pytest.approx(2)
    expected = torch.autograd.grad(mlm.log() + nsp.log(), x, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], expected)


@pytest.mark.parametrize("units", [NATS, (9.0, 0.7), None])
def test_a_task_without_examples_adds_nothing(units):
    x, mlm, _ = losses()
    both = combine([mlm, 0 * mlm], heads(1.0), units)
    torch.testing.assert_close(
        torch.autograd.grad(both, x, retain_graph=True)[0],
        torch.autograd.grad(combine([mlm, torch.zeros(())], heads(0.0), units), x)[0],
    )


def test_initial_units_are_uniform_guesses(dataset):
    assert loss_units("initial", HEADS, dataset) == [math.log(dataset.vocab_size), math.log(2)]


def test_prior_units_are_guesses_by_frequency(dataset):
    mlm, nsp = loss_units("prior", HEADS, dataset)
    special = set(dataset.special_token_ids.values()) - {dataset.special_token_ids["unk"]}
    pieces = [i for i in dataset.take(np.arange(len(dataset)))["input_ids"].ravel().tolist() if i not in special]
    entropy = -sum(math.log(pieces.count(i) / len(pieces)) for i in pieces) / len(pieces)
    assert mlm == pytest.approx(entropy)
    assert 0 < mlm < math.log(dataset.vocab_size)
    assert nsp == math.log(2)
