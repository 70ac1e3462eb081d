"""Integrated gradients on functions whose integrals are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kexue_train.downstream.evaluate.integrated_gradients import integrated_gradients, path_points

X = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]], dtype=torch.float64)
X0 = torch.tensor([[0.5, 1.0, -0.5], [-1.0, 2.0, 0.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([[2.0, 1.0, -3.0], [0.5, -1.0, 4.0]], dtype=torch.float64)


@pytest.mark.parametrize(("rule", "steps"), [("gauss", 1), ("trapezoid", 2)])
def test_a_linear_function_gives_gradient_times_difference_at_once(rule, steps):
    found = integrated_gradients(lambda x: (x * WEIGHTS).sum((1, 2)) + 7, X, X0, steps=steps, rule=rule)
    torch.testing.assert_close(found.values, WEIGHTS * (X - X0), rtol=1e-12, atol=1e-12)
    assert found.gap < 1e-12
    assert found.at_baseline == pytest.approx(float((X0 * WEIGHTS).sum() + 7))


@pytest.mark.parametrize(("rule", "steps"), [("gauss", 1), ("trapezoid", 2)])
def test_a_quadratic_function_gives_its_closed_form(rule, steps):
    matrix = torch.from_numpy(np.random.default_rng(0).normal(size=(6, 6)))
    matrix = matrix + matrix.T
    found = integrated_gradients(
        lambda x: torch.einsum("ni,ij,nj->n", x.flatten(1), matrix, x.flatten(1)) / 2, X, X0, steps=steps, rule=rule
    )
    # ∇f = A x is linear along the path, so its mean is A times the middle.
    middle = (matrix @ ((X + X0) / 2).flatten()).view(2, 3)
    torch.testing.assert_close(found.values, (X - X0) * middle, rtol=1e-10, atol=1e-10)
    assert found.gap < 1e-10


def test_gauss_is_exact_where_the_trapezoid_is_not():
    def fifth_power(x):
        return (x**5).sum((1, 2))

    expected = X**5 - X0**5  # a sum over elements: each gets its own difference
    gauss = integrated_gradients(fifth_power, X, X0, steps=3)
    torch.testing.assert_close(gauss.values, expected, rtol=1e-10, atol=1e-10)
    gaps = [integrated_gradients(fifth_power, X, X0, steps=n, rule="trapezoid").gap for n in (5, 9, 17, 33)]
    assert gaps[0] > 1
    # Half as long steps: a quarter of the error.
    np.testing.assert_allclose(np.array(gaps[:-1]) / gaps[1:], 4, rtol=0.15)


def test_an_input_that_does_not_matter_gets_nothing():
    found = integrated_gradients(lambda x: torch.sin(x[:, 0]).sum(1), X, X0, steps=16)
    assert found.values[1].tolist() == [0, 0, 0]
    torch.testing.assert_close(found.values[0], torch.sin(X[0]) - torch.sin(X0[0]), rtol=1e-9, atol=1e-9)


def test_too_few_steps_show_in_the_gap():
    def step(x):
        return torch.sigmoid(50 * (x[:, 0, 0] - 0.9))  # between 0.5 and 1

    few, many = (integrated_gradients(step, X, X0, steps=n).gap for n in (2, 256))
    assert few > 0.1
    assert many < 1e-6


def test_more_points_than_fit_one_forward_are_all_counted():
    sizes = []

    def function(x):
        sizes.append(len(x))
        return x.square().sum((1, 2))

    found = integrated_gradients(function, X, X0, steps=70)
    torch.testing.assert_close(found.values, X**2 - X0**2, rtol=1e-10, atol=1e-10)
    assert sum(sizes) == 70 + 2


@pytest.mark.parametrize("rule", ["gauss", "trapezoid"])
def test_weights_sum_to_one_inside_of_the_path(rule):
    places, weights = path_points(9, rule)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert places.min() >= 0
    assert places.max() <= 1


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="at least 2 steps"):
        path_points(1, "trapezoid")
    with pytest.raises(ValueError, match="at least 1 steps"):
        path_points(0, "gauss")
    with pytest.raises(ValueError, match="differ in shape"):
        integrated_gradients(lambda x: x.sum((1, 2)), X, X0[:1], steps=4)
