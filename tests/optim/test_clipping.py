"""Clipping: the two factors, how they bound each other, and norms of tensors and of their pieces."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.optim.gradients import clip_factor, global_norm, joint_norm, square_norms

POSITIVE = st.floats(1e-6, 1e6)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@given(norm=st.floats(0, 1e6), limit=POSITIVE)
def test_factors_are_the_published_ones(norm, limit):
    hard = 1.0 if norm <= limit else limit / norm
    assert clip_factor(scalar(norm), limit, "hard").item() == pytest.approx(hard, rel=1e-12)
    assert clip_factor(scalar(norm), limit, "soft").item() == pytest.approx(limit / (norm + limit), rel=1e-12)


@given(norm=st.floats(0, 1e6), limit=POSITIVE)
def test_the_soft_factor_is_between_half_and_all_of_the_hard_one(norm, limit):
    hard, soft = (clip_factor(scalar(norm), limit, form).item() for form in ("hard", "soft"))
    assert 0.5 * hard * (1 - 1e-12) <= soft <= hard * (1 + 1e-12)


@pytest.mark.parametrize("form", ["hard", "soft"])
@pytest.mark.parametrize(("norm", "factor"), [(0.0, 1.0), (math.inf, 0.0), (math.nan, math.nan)])
def test_factors_of_extreme_norms(form, norm, factor):
    assert clip_factor(torch.tensor(norm), 2.0, form).item() == pytest.approx(factor, nan_ok=True)


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_a_clipped_gradient_is_no_longer_than_the_limit(form):
    gradient = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 50
    clipped = gradient * clip_factor(global_norm([gradient]), 3.0, form)
    assert clipped.norm().item() <= 3.0 * (1 + 1e-12)
    assert torch.nn.functional.cosine_similarity(clipped, gradient, dim=0).item() == pytest.approx(1.0)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_limit_that_is_not_positive_is_refused(limit):
    with pytest.raises(ValueError, match="limit > 0, got limit="):
        clip_factor(torch.tensor(1.0), limit, "hard")


def test_norms_of_several_tensors_are_those_of_all_their_elements():
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in [(3, 4), (7,), (), (0,), (2, 1, 5)]]
    everything = np.concatenate([t.numpy().ravel() for t in tensors])
    norm = global_norm(tensors)
    assert (norm.shape, norm.dtype) == ((), torch.float64)
    assert norm.item() == pytest.approx(np.linalg.norm(everything), rel=1e-13)
    each = [(t.numpy() ** 2).sum() for t in tensors]
    np.testing.assert_allclose(square_norms(tensors).numpy(), each, rtol=1e-13)


def test_pieces_of_partitions_add_up_to_the_norm_of_the_whole():
    one, two = torch.randn(1000, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    ranks = [[one[:400], two[:0]], [one[400:401], two[:3]], [one[401:], two[3:]]]
    squares = torch.stack([square_norms(pieces) for pieces in ranks]).sum(0)
    torch.testing.assert_close(squares, square_norms([one, two]), rtol=1e-13, atol=0)
    assert joint_norm(squares).item() == pytest.approx(global_norm([one, two]).item(), rel=1e-13)


@pytest.mark.parametrize("form", ["hard", "soft"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_tensor_with_a_bad_element_does_not_decide_about_the_others_and_stays_bad(bad, form):
    good = [torch.tensor([3.0]), torch.tensor([4.0])]
    broken = torch.tensor([1.0, bad])
    norm = global_norm([good[0], broken, good[1]])
    assert norm.item() == 5.0
    assert not torch.isfinite(broken * clip_factor(norm, 1.0, form)).all()
    assert not torch.isfinite(broken * clip_factor(broken.norm(), 1.0, form)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype):
    # 2²⁰ squares of 2⁻⁷: exact in fp32; in half precision the sum would stand still early, and 2⁻²⁸ is 0 in fp16.
    tensors = [torch.full((2**20,), 2.0**-14, dtype=dtype), torch.full((4,), 2.0**-14, dtype=dtype)]
    norm = global_norm(tensors)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(2.0**-14 * math.sqrt(2**20 + 4), rel=1e-6)


def test_the_best_dtype_among_the_tensors_is_kept():
    mixed = [torch.full((3,), 0.5, dtype=torch.bfloat16), torch.full((1,), 1e-5, dtype=torch.float64)]
    assert square_norms(mixed).sum().item() == pytest.approx(0.75 + 1e-10, rel=1e-15)


def test_no_tensors_are_refused():
    with pytest.raises(ValueError, match="no tensors have no device"):
        global_norm([])


@pytest.mark.parametrize("start", [0.5, 3.0, 40.0, -1000.0])
def test_the_soft_form_descends_a_quartic_from_anywhere(start):
    # θ⁴ has f'' = 12θ² <= 16 + |f'|, so it is (16, 1)-smooth: γ = L0/L1 = 16 and a learning rate of 1/L0.
    theta, values = scalar(start), []
    for _ in range(1200):
        values.append(theta.item() ** 4)
        gradient = 4 * theta**3
        theta = theta - gradient * clip_factor(gradient.abs(), 16.0, "soft") / 16
    assert all(after < before for before, after in pairwise(values))
    assert values[-1] < 1e-3


def test_without_clipping_the_same_learning_rate_diverges():
    theta = 40.0
    for _ in range(4):
        theta -= 4 * theta**3 / 16
    assert abs(theta) > 1e30


def test_nothing_waits_for_a_device():
    # Meta tensors have no values: whatever would read one raises.
    norm = global_norm([torch.empty(3, 4, device="meta"), torch.empty(5, device="meta")])
    assert [clip_factor(norm, 1.0, form).shape for form in ("hard", "soft")] == [(), ()]
