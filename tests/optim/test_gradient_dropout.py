"""Gradient dropout: its moments, and that its mask depends on nothing but (seed, step, tensor, element)."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.optim.gradients import drop_gradient_, keep_mask, kept_share

HERE = {"seed": 3, "step": 17, "tensor": 5}


def mask(numel: int, keep: float = 0.5, offset: int = 0, **where: int) -> torch.Tensor:
    return keep_mask(numel, keep=keep, offset=offset, device="cpu", **HERE | where)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 0.9])
def test_mean_and_variance_are_the_published_ones(keep):
    n, mu, sigma = 2**20, 0.7, 1.5
    gradient = mu + sigma * torch.randn(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dropped = drop_gradient_(gradient.clone(), keep=keep, **HERE).numpy()
    variance = sigma**2 + (1 - keep) / keep * (mu**2 + sigma**2)
    # Five standard errors; the fourth moment of g·M/p about its mean is below 3(μ+2σ)⁴/p³.
    assert dropped.mean() == pytest.approx(mu, abs=5 * math.sqrt(variance / n))
    assert dropped.var() == pytest.approx(variance, abs=5 * math.sqrt(3 * (mu + 2 * sigma) ** 4 / keep**3 / n))


@pytest.mark.parametrize("keep", [1 / 2**16, 0.01, 0.3, 0.99])
def test_the_share_that_is_kept(keep):
    n = 2**22
    assert mask(n, keep).double().mean().item() == pytest.approx(keep, abs=5 * math.sqrt(keep * (1 - keep) / n))


def test_elements_are_either_zero_or_their_value_over_the_share():
    gradient = torch.randn(64, 32, dtype=torch.float64)
    dropped = drop_gradient_(gradient.clone(), keep=0.25, **HERE)
    expected = np.where(mask(64 * 32, 0.25).numpy().reshape(64, 32), gradient.numpy() / 0.25, 0.0)
    np.testing.assert_array_equal(dropped.numpy(), expected)


def test_it_works_in_place_and_without_a_trace_for_autograd():
    gradient = torch.ones(8, requires_grad=True)
    result = drop_gradient_(gradient, keep=0.5, **HERE)
    assert result is gradient
    assert gradient.grad_fn is None


@given(cuts=st.lists(st.integers(0, 300), max_size=6), keep=st.floats(0.01, 1))
def test_slices_of_any_cut_are_slices_of_the_whole(cuts, keep):
    whole = torch.linspace(-1, 1, 300, dtype=torch.float64)
    borders = [0, *sorted(cuts), 300]
    pieces = [
        drop_gradient_(whole[start:end].clone(), keep=keep, offset=start, **HERE) for start, end in pairwise(borders)
    ]
    assert torch.equal(torch.cat(pieces), drop_gradient_(whole.clone(), keep=keep, **HERE))


def test_the_mean_of_dropped_micro_gradients_is_the_dropped_mean():
    micro = torch.randn(4, 50, dtype=torch.float64)
    each = torch.stack([drop_gradient_(g.clone(), keep=0.3, **HERE) for g in micro]).mean(0)
    torch.testing.assert_close(each, drop_gradient_(micro.mean(0), keep=0.3, **HERE), rtol=0, atol=1e-14)


@pytest.mark.parametrize("other", [{"seed": 4}, {"step": 18}, {"tensor": 6}, {"step": 0}, {"step": 2**38 - 1}])
def test_another_seed_step_or_tensor_has_an_independent_mask(other):
    n = 2**16
    agreement = (mask(n) == mask(n, **other)).double().mean().item()
    assert agreement == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(n))


def test_a_smaller_share_keeps_a_subset():
    assert not (mask(10_000, 0.2) & ~mask(10_000, 0.6)).any()


def test_keeping_everything_changes_nothing():
    gradient = torch.randn(1000)
    assert torch.equal(drop_gradient_(gradient.clone(), keep=1.0, **HERE), gradient)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_element_stays_visible_whether_dropped_or_not(bad):
    bad_places = drop_gradient_(torch.full((100,), bad), keep=0.5, **HERE)
    assert not torch.isfinite(bad_places).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_dtype_is_scaled_with_one_rounding(dtype):
    gradient = torch.randn(500).to(dtype)
    dropped = drop_gradient_(gradient.clone(), keep=0.3, **HERE)
    exact = torch.where(mask(500, 0.3), gradient.double() / kept_share(0.3), 0.0)
    assert dropped.dtype == dtype
    torch.testing.assert_close(dropped.double(), exact, rtol=torch.finfo(dtype).eps / 2, atol=0)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, math.nan])
def test_a_share_that_is_none_is_refused(keep):
    with pytest.raises(ValueError, match="0 < keep <= 1, got keep="):
        drop_gradient_(torch.ones(3), keep=keep, **HERE)


@given(keep=st.floats(1e-9, 1))
def test_the_share_is_taken_to_the_nearest_step_of_the_random_bits(keep):
    share = kept_share(keep)
    assert 0 < share <= 1
    assert (share * 2**16).is_integer()
    assert abs(share - keep) <= 2**-17 or (share == 2**-16 and keep < share)


def test_nothing_waits_for_a_device():
    # Meta tensors have no values: whatever would read one raises.
    assert drop_gradient_(torch.empty(3, 4, device="meta"), keep=0.5, **HERE).shape == (3, 4)
