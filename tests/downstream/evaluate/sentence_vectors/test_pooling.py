"""Pooling against loops over tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kexue_train.downstream.evaluate.sentence_vectors.encode_sentences import pool
from kexue_train.downstream.settings import POOLINGS, Pooling

LENGTHS = [5, 2, 3]


@pytest.fixture
def states() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(3, 5, 4, generator=random, dtype=torch.float64) for _ in range(4)]


def mask() -> torch.Tensor:
    return (torch.arange(5) < torch.tensor(LENGTHS)[:, None]).long()


def slow(states: list[torch.Tensor], pooling: Pooling) -> np.ndarray:
    rows = []
    for row, length in enumerate(LENGTHS):
        tokens = [layer[row, :length].numpy() for layer in states]
        last = np.mean(tokens[-1], axis=0)
        rows.append(
            {"cls": tokens[-1][0], "mean": last, "first-last": (np.mean(tokens[1], axis=0) + last) / 2}[pooling]
        )
    return np.array(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_is_what_its_name_says(states: list[torch.Tensor], pooling: Pooling) -> None:
    np.testing.assert_allclose(pool(states, mask(), pooling), slow(states, pooling), rtol=1e-12)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_what_stands_in_the_padding_does_not_matter(states: list[torch.Tensor], pooling: Pooling) -> None:
    changed = [torch.where(mask()[..., None].bool(), layer, 1e9) for layer in states]
    assert torch.equal(pool(states, mask(), pooling), pool(changed, mask(), pooling))


def test_without_layers_between_the_first_is_the_last(states: list[torch.Tensor]) -> None:
    torch.testing.assert_close(pool(states[:2], mask(), "first-last"), pool(states[:2], mask(), "mean"))
