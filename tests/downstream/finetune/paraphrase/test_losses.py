"""The two losses against numpy, term by term."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kexue_train.downstream.finetune.paraphrase.losses import next_token_slots, similarity_loss, writing_loss
from kexue_train.downstream.finetune.paraphrase.problem import found_partners


def slow_similarity(vectors: np.ndarray, texts: list[int], scale: float) -> float:
    """The formula of kexue.fm 7427, row by row."""
    unit, total = vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 0.0
    for i in range(len(vectors)):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = [j for j in range(len(vectors)) if j == partner or texts[j] not in (texts[i], texts[partner])]
        terms = {j: math.exp(scale * float(unit[i] @ unit[j])) for j in others}
        total -= math.log(terms[partner] / sum(terms.values()))
    return total / len(vectors)


@pytest.mark.parametrize("texts", [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 0, 1, 5, 6, 7]], ids=["different", "repeated"])
def test_the_similarity_loss_is_its_formula(texts):
    vectors = np.random.default_rng(0).normal(size=(8, 5))
    found = similarity_loss(torch.tensor(vectors), torch.tensor(texts), 20.0)
    assert found.item() == pytest.approx(slow_similarity(vectors, texts, 20.0), rel=1e-5)


def test_without_repeated_texts_it_is_the_softmax_with_a_masked_diagonal():
    vectors, texts = torch.randn(10, 6, generator=torch.Generator().manual_seed(1)), torch.arange(10)
    unit = torch.nn.functional.normalize(vectors)
    logits = 30 * unit @ unit.T - 1e12 * torch.eye(10)
    plain = torch.nn.functional.cross_entropy(logits, torch.arange(10) ^ 1)
    assert similarity_loss(vectors, texts, 30.0).item() == pytest.approx(plain.item(), rel=1e-5)


def test_vectors_without_sense_cost_the_logarithm_of_the_other_sentences():
    vectors = torch.randn(256, 4096, generator=torch.Generator().manual_seed(0))
    assert similarity_loss(vectors, torch.arange(256), 1.0).item() == pytest.approx(math.log(255), abs=0.01)


def test_a_pair_that_a_batch_holds_twice_is_not_pushed_apart():
    """With the copies as wrong answers, equal vectors would cost log 3 in each of the first four rows."""
    a, b = torch.eye(2)
    vectors, texts = torch.stack([a, a, a, a, b, b]), torch.tensor([0, 1, 0, 1, 2, 3])
    assert similarity_loss(vectors, texts, 30.0).item() < 1e-6
    assert similarity_loss(vectors, torch.arange(6), 30.0).item() == pytest.approx(4 / 6 * math.log(3), abs=1e-6)


def test_the_last_token_of_the_first_segment_writes_the_first_of_the_second():
    types = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])
    assert next_token_slots(types).int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 0]]


def test_the_writing_loss_is_a_mean_over_tokens():
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=(6, 4)), random.integers(0, 4, 6)
    slow = -np.mean([row[target] - np.log(np.exp(row).sum()) for row, target in zip(logits, targets, strict=True)])
    assert writing_loss(torch.tensor(logits), torch.tensor(targets)).item() == pytest.approx(slow, rel=1e-6)


def test_partners_are_found_unless_another_is_as_near_and_copies_do_not_count():
    a, b = torch.eye(2)
    assert found_partners(torch.stack([a, a, b, b]), torch.arange(4)) == 1.0
    assert found_partners(torch.stack([a, b, a, b]), torch.arange(4)) == 0.0
    assert found_partners(torch.ones(4, 2), torch.arange(4)) == 0.0
    assert found_partners(torch.stack([a, a, a, b]), torch.tensor([0, 1, 0, 2])) == 0.5
