"""Rotary positions: what makes them relative, stated as properties."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.model.modeling_roformer_v2 import apply_rope, rotary_table
from tests.reference.roformer_v2_numpy import rotate

POSITION = st.integers(0, 2000)
HEAD_SIZE = st.sampled_from([2, 6, 12, 64])


def rope(x: torch.Tensor, *positions: int) -> torch.Tensor:
    """Rotate ``x`` [D] once per position, one after the other."""
    for position in positions:
        x = apply_rope(x[None, None, None], rotary_table(torch.tensor([[position]]), len(x), 10000.0))[0, 0, 0]
    return x


def random_vectors(head_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = np.random.default_rng(head_size).standard_normal((2, head_size)).astype(np.float32)
    return torch.from_numpy(q), torch.from_numpy(k)


@given(head_size=HEAD_SIZE, position=POSITION)
def test_equals_multiplication_by_a_complex_unit(head_size, position):
    x, _ = random_vectors(head_size)
    expected = rotate(x.double().numpy()[None], np.array([position]))[0]
    np.testing.assert_allclose(rope(x, position).numpy(), expected, atol=1e-6)


@given(head_size=HEAD_SIZE, left=POSITION, right=POSITION, shift=POSITION)
def test_product_depends_on_the_distance_only(head_size, left, right, shift):
    q, k = random_vectors(head_size)
    torch.testing.assert_close(
        rope(q, left) @ rope(k, right), rope(q, left + shift) @ rope(k, right + shift), atol=2e-5, rtol=0
    )


@given(head_size=HEAD_SIZE, position=POSITION)
def test_length_is_preserved(head_size, position):
    x, _ = random_vectors(head_size)
    torch.testing.assert_close(rope(x, position).norm(), x.norm())


@given(head_size=HEAD_SIZE, first=POSITION, second=POSITION)
def test_turning_twice_is_turning_by_the_sum(head_size, first, second):
    x, _ = random_vectors(head_size)
    torch.testing.assert_close(rope(x, first, second), rope(x, first + second), atol=2e-6, rtol=0)


def test_position_zero_is_the_identity():
    x, _ = random_vectors(64)
    assert torch.equal(rope(x, 0), x)


def test_pairs_are_neighbours_and_the_first_turns_by_one_radian():
    turned = rope(torch.tensor([1.0, 0.0, 0.0, 1.0]), 1)
    expected = torch.tensor([np.cos(1.0), np.sin(1.0), -np.sin(0.01), np.cos(0.01)], dtype=torch.float32)
    torch.testing.assert_close(turned, expected)


def test_half_precision_goes_in_and_comes_out():
    x, _ = random_vectors(12)
    turned = rope(x.bfloat16(), 7)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned.float(), rope(x, 7), atol=0.02, rtol=0)
