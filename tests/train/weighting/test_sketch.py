"""The sketch of a gradient: random signs in the right places, unbiased, with the variance that is stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from kexue_train.train.weighting import sketch as module
from kexue_train.train.weighting.sketch import SKETCH_SIZE, add_sketch_


def sketch_of(gradient: Tensor, seed: int = 0, tensor: int = 0) -> Tensor:
    sketch = torch.zeros(SKETCH_SIZE)
    add_sketch_(sketch, gradient, seed=seed, tensor=tensor)
    return sketch


def signs_of(rows: int, seed: int = 0, tensor: int = 0) -> Tensor:
    """The signs of whole rows, [rows, SKETCH_SIZE], told by the sketches of one row of ones each."""
    signs = []
    for row in range(rows):
        probe = torch.zeros(rows, SKETCH_SIZE)
        probe[row] = 1
        signs.append(sketch_of(probe, seed, tensor))
    return torch.stack(signs)


def test_a_sketch_adds_up_every_1021st_element_with_a_sign_of_its_own():
    rows = 37  # two periods and a part of one
    signs = signs_of(rows)
    assert torch.equal(signs.abs(), torch.ones(rows, SKETCH_SIZE))
    assert abs(float(signs.mean())) < 4 / math.sqrt(signs.numel())
    gradient = torch.randn(rows * SKETCH_SIZE - 300, generator=torch.Generator().manual_seed(0))
    padded = np.pad(gradient.double().numpy(), (0, 300)).reshape(rows, SKETCH_SIZE)
    np.testing.assert_allclose(sketch_of(gradient), (signs.numpy() * padded).sum(0), atol=1e-5, rtol=0)


def test_the_signs_of_tensors_and_seeds_are_independent_and_those_of_both_repeat():
    first = signs_of(16)
    assert torch.equal(first, signs_of(16))
    for other in (signs_of(16, seed=1), signs_of(16, tensor=1)):
        assert abs(float((first * other).mean())) < 4 / math.sqrt(first.numel())


def test_how_a_gradient_is_cut_and_shaped_changes_nothing(monkeypatch):
    gradient = torch.randn(5 * module._PERIOD + 12345, generator=torch.Generator().manual_seed(1))
    whole = sketch_of(gradient)
    monkeypatch.setattr(module, "_CPU_PIECE", 2 * module._PERIOD)
    torch.testing.assert_close(sketch_of(gradient.view(5, -1)), whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1,), (768,), (SKETCH_SIZE,), (3, 7, 11), (0,)])
def test_small_tensors_keep_their_norm_where_no_two_elements_meet(shape):
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(sketch_of(gradient).norm(), gradient.norm())


def test_inner_products_are_unbiased_with_the_stated_variance():
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(2, 6 * SKETCH_SIZE, generator=generator)
    right = 0.5 * left + right
    products = torch.stack([(sketch_of(left, seed) * sketch_of(right, seed)).sum() for seed in range(400)]).double()
    truth = float(left @ right)
    expected = math.sqrt((float(left @ left) * float(right @ right) + truth**2) / SKETCH_SIZE)
    assert abs(float(products.mean()) - truth) < 4 * expected / math.sqrt(len(products))
    # Elements meet in groups of 6 only, 5/6 of the variance of many rows; 400 draws tell a deviation to 3.5 %.
    assert float(products.std()) == pytest.approx(expected * math.sqrt(5 / 6), rel=0.12)


@pytest.mark.parametrize("axis", [0, 1], ids=["row", "column"])
def test_one_heavy_row_or_column_of_a_weight_falls_into_many_buckets(axis):
    gradient = torch.zeros(1024, 1024)
    gradient.select(axis, 5).fill_(1.0)
    # Into 1024 buckets a column would fall as one number, and the square of its sketch be anything from 0 on.
    assert float(sketch_of(gradient).square().sum()) == pytest.approx(1024, rel=4 * math.sqrt(2 / SKETCH_SIZE))


def test_what_is_not_finite_shows():
    gradient = torch.ones(2000)
    gradient[7] = torch.nan
    assert sketch_of(gradient).isnan().sum() == 1


def test_half_and_double_precision_are_sketched_as_single():
    gradient = torch.randn(3000, generator=torch.Generator().manual_seed(4)).bfloat16()
    torch.testing.assert_close(sketch_of(gradient), sketch_of(gradient.float()), rtol=0, atol=0)
    torch.testing.assert_close(sketch_of(gradient.double()), sketch_of(gradient.float()), rtol=0, atol=0)
