"""The scale-shift invariant regulariser, against autograd and against the symmetry that it is made for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.optim.step_sizes import weissi_decay, weissi_penalty, weissi_shift


def matrices(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def feed_forward(x: torch.Tensor, inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ inner.T) @ outer.T


def l2(*weights: torch.Tensor) -> float:
    return sum(w.square().sum().item() for w in weights)


@given(c=st.floats(1e-3, 1e3))
def test_shifting_scale_between_two_layers_changes_neither_the_network_nor_the_penalty(c):
    x, inner, outer = matrices((5, 4), (8, 4), (3, 8))
    shifted = (c * inner, outer / c)
    torch.testing.assert_close(feed_forward(x, *shifted), feed_forward(x, inner, outer), rtol=1e-11, atol=1e-11)
    before, after = (weissi_penalty(w, log_norm=0.3, sparsity=0.7).item() for w in ((inner, outer), shifted))
    assert after == pytest.approx(before, rel=1e-10)


@pytest.mark.parametrize("c", [0.5, 2.0, 10.0])
def test_ordinary_weight_decay_sees_a_shift_of_scale(c):
    inner, outer = matrices((8, 4), (3, 8))
    assert l2(c * inner, outer / c) != pytest.approx(l2(inner, outer), rel=0.1)


def test_weight_decay_can_fall_without_any_effect_on_the_network():
    x, inner, outer = matrices((5, 4), (8, 4), (3, 8))
    inner = 10 * inner
    c = math.sqrt(outer.norm() / inner.norm())  # where the sum of squares is least along the symmetry
    assert l2(c * inner, outer / c) < 0.5 * l2(inner, outer)
    torch.testing.assert_close(feed_forward(x, c * inner, outer / c), feed_forward(x, inner, outer))


def test_the_value_worked_out_by_hand():
    weights = [torch.tensor([[3.0, -4.0]]), torch.tensor([[2.0]])]
    # Norms 5 and 2, sums of absolute values 7 and 2.
    expected = 0.5 * (math.log(5) + math.log(2)) + 0.25 * (7 / 5 + 1)
    assert weissi_penalty(weights, log_norm=0.5, sparsity=0.25).item() == pytest.approx(expected)


def test_the_gradient_is_that_of_finite_differences():
    weights = [w.requires_grad_() for w in matrices((3, 2), (2, 4))]
    assert torch.autograd.gradcheck(lambda *w: weissi_penalty(w, log_norm=0.3, sparsity=0.7), weights)


@given(scale=st.floats(0.1, 100), lr=st.floats(0, 0.1), log_norm=st.floats(0, 0.05))
def test_the_decoupled_step_is_a_gradient_step_on_the_first_term(scale, lr, log_norm):
    (weight,) = matrices((6, 5))
    weight = (scale * weight).requires_grad_()
    weissi_penalty([weight], log_norm=log_norm, sparsity=0.0).backward()
    share = weissi_decay(weight.detach().square().sum(), lr=lr, log_norm=log_norm)
    torch.testing.assert_close(weight - share * weight, weight - lr * weight.grad, rtol=1e-12, atol=1e-14)


def test_one_share_per_matrix():
    shares = weissi_decay(torch.tensor([1.0, 4.0, 100.0]), lr=0.5, log_norm=0.2)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.025, 0.001]))


def test_one_learning_rate_per_matrix():
    shares = weissi_decay(torch.tensor([1.0, 4.0, 100.0]), lr=torch.tensor([0.5, 1.0, 0.0]), log_norm=0.2)
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.05, 0.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_matrix_is_turned_around_or_made_nan(dtype):
    shares = weissi_decay(torch.tensor([0.0, 1e-30, 1e-3, math.inf], dtype=dtype), lr=1.0, log_norm=0.01)
    assert shares.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert weissi_decay(torch.tensor([0.0, 1.0], dtype=dtype), lr=0.0, log_norm=0.01).tolist() == [0.0, 0.0]


def test_half_precision_weights_are_summed_in_single():
    # In bf16 adding 2⁻⁶ to 4 changes nothing, so a sum of 2¹⁶ squares of ⅛ would stand still.
    weight = torch.full((256, 256), 0.125, dtype=torch.bfloat16)
    penalty = weissi_penalty([weight], log_norm=1.0, sparsity=1.0)
    assert penalty.dtype == torch.float32
    assert penalty.item() == pytest.approx(math.log(32) + 256, rel=1e-6)


@given(scale=st.floats(0.1, 100), lr=st.floats(0, 0.01), sparsity=st.floats(0, 0.05))
def test_the_shift_is_a_gradient_step_on_the_second_term(scale, lr, sparsity):
    (weight,) = matrices((6, 5))
    weight = (scale * weight).requires_grad_()
    weissi_penalty([weight], log_norm=0.0, sparsity=sparsity).backward()
    with torch.no_grad():
        shift, growth = weissi_shift(weight.square().sum(), weight.abs().sum(), lr=lr, sparsity=sparsity)
        torch.testing.assert_close(
            weight - shift * weight.sign() + growth * weight, weight - lr * weight.grad, rtol=1e-12, atol=1e-14
        )


def test_the_second_term_keeps_the_norm_and_makes_small_elements_zero():
    weight = torch.tensor([[1.0, -1.0, 0.01, -0.02]], dtype=torch.float64)
    for _ in range(500):
        shift, growth = weissi_shift(weight.square().sum(), weight.abs().sum(), lr=1e-3, sparsity=0.5)
        weight = weight - weight.clamp(-shift, shift) + growth * weight
    assert weight[0, 2:].tolist() == [0.0, 0.0]
    assert weight[0, 0].item() == -weight[0, 1].item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_shift_makes_a_matrix_nan(dtype):
    for absolutes, squares in ((0.0, 0.0), (1e-15, 1e-30), (1e-3, 1e-6)):
        numbers = [torch.tensor(value, dtype=dtype) for value in (squares, absolutes)]
        shift, growth = weissi_shift(*numbers, lr=1.0, sparsity=0.5)
        assert math.isfinite(shift)
        assert 0 <= growth <= 1
