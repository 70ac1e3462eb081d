"""The losses against their formulas, term by term, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.downstream.finetune.losses import am_softmax_loss, cosent_loss, simcse_loss

PAIRS = st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 4)), min_size=1, max_size=12)


def slow_cosent(cosines: list[float], scores: list[int], scale: float) -> float:
    total = 1.0
    for m in range(len(cosines)):
        for other in range(len(cosines)):
            if scores[m] > scores[other]:
                total += math.exp(scale * (cosines[other] - cosines[m]))
    return math.log(total)


@given(PAIRS, st.floats(0.1, 20))
@settings(max_examples=100, deadline=None)
def test_cosent_sums_over_all_ordered_pairs(pairs: list[tuple[float, int]], scale: float) -> None:
    cosines, scores = [cosine for cosine, _ in pairs], [score for _, score in pairs]
    found = cosent_loss(torch.tensor(cosines, dtype=torch.float64), torch.tensor(scores), scale)
    assert found.item() == pytest.approx(slow_cosent(cosines, scores, scale), rel=1e-9, abs=1e-12)


def test_cosent_knows_only_the_order_of_the_scores() -> None:
    random = torch.Generator().manual_seed(0)
    cosines, scores = torch.rand(9, generator=random), torch.randint(0, 4, (9,), generator=random).double()
    assert torch.equal(cosent_loss(cosines, scores), cosent_loss(cosines, scores.exp() - 7))


def test_cosent_is_zero_where_nothing_is_wrong_and_where_nothing_is_ordered() -> None:
    cosines = torch.tensor([0.9, 0.1, -0.8], requires_grad=True)
    assert cosent_loss(cosines, torch.tensor([5.0, 3.0, 1.0])).item() < 1e-6
    loss = cosent_loss(cosines, torch.tensor([2.0, 2.0, 2.0]))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(cosines.grad, torch.zeros(3))


def test_cosent_draws_pairs_in_the_wrong_order_past_each_other() -> None:
    cosines = torch.tensor([0.2, 0.8], requires_grad=True)
    cosent_loss(cosines, torch.tensor([1.0, 0.0])).backward()
    assert cosines.grad[0] < 0 < cosines.grad[1]


@pytest.mark.parametrize("margin", [0.0, 0.35])
def test_am_softmax_is_its_formula(margin: float) -> None:
    random = np.random.default_rng(0)
    cosines, labels = random.uniform(-1, 1, (5, 7)), random.integers(0, 7, 5)
    slow = np.mean(
        [
            math.log1p(sum(math.exp(30 * (row[i] + margin - row[y])) for i in range(7) if i != y))
            for row, y in zip(cosines, labels, strict=True)
        ]
    )
    found = am_softmax_loss(torch.tensor(cosines), torch.tensor(labels), margin=margin)
    assert found.item() == pytest.approx(slow, rel=1e-12)
    if margin == 0:
        plain = torch.nn.functional.cross_entropy(30 * torch.tensor(cosines), torch.tensor(labels))
        assert found.item() == pytest.approx(plain.item(), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_simcse_is_its_formula_and_both_passes_learn(temperature: float) -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 5, 3))
    passes = [torch.tensor(vectors, requires_grad=True) for vectors in (first, second)]
    loss = simcse_loss(*passes, temperature)
    total = 0.0
    for i in range(5):
        cosines = [first[i] @ second[j] / np.sqrt((first[i] @ first[i]) * (second[j] @ second[j])) for j in range(5)]
        total -= math.log(math.exp(cosines[i] / temperature) / sum(math.exp(c / temperature) for c in cosines))
    assert loss.item() == pytest.approx(total / 5, rel=1e-9)
    loss.backward()
    assert all((vectors.grad.abs().sum(1) > 0).all() for vectors in passes)


def test_simcse_of_vectors_without_relation_is_the_log_of_the_batch_and_of_one_is_nothing() -> None:
    same = torch.ones(8, 4)
    assert simcse_loss(same, same).item() == pytest.approx(math.log(8), rel=1e-6)
    assert simcse_loss(torch.ones(1, 4), torch.rand(1, 4)).item() == 0
