"""Rounding to bf16 at random: right on average, and never further than a neighbour."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kexue_train.optim.random_bits import round_stochastically

LARGEST = torch.finfo(torch.bfloat16).max
SEEDS = 1 << 14


def neighbours(values: Tensor) -> tuple[Tensor, Tensor]:
    """The bf16 numbers below and above in size, found among all there are."""
    everything = torch.arange(0x7F81, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()  # 0 ... Inf
    above = torch.searchsorted(everything, values.abs())
    exact = everything[above] == values.abs()
    below = torch.where(exact, above, above - 1)
    return everything[below] * values.sign(), everything[above] * values.sign()


def magnitudes() -> Tensor:
    """fp32 of every size, subnormals of fp32 and of bf16 too, of both signs."""
    generator = torch.Generator().manual_seed(0)
    exponents = torch.arange(-149, 127).float().repeat_interleave(8)
    values = torch.ldexp(1 + torch.rand(exponents.numel(), generator=generator, dtype=torch.float64), exponents).float()
    return torch.cat([values, -values])


def test_result_is_one_of_the_two_neighbours():
    values = magnitudes()
    below, above = neighbours(values)
    for seed in range(20):
        rounded = round_stochastically(values, seed=seed, stream=0).float()
        assert ((rounded == below) | (rounded == above)).all()


def test_is_unbiased_at_every_size():
    """The mean over many seeds lies within five standard errors of the value."""
    values = magnitudes()[::7].double()
    below, above = (each.double() for each in neighbours(values.float()))
    total = torch.zeros_like(values)
    for seed in range(SEEDS // 16):
        total += round_stochastically(values.float().repeat(16), seed=seed, stream=0).double().view(16, -1).sum(0)
    spacing = (above - below).abs()
    share = torch.where(spacing > 0, (values - below).abs() / spacing, 0.0)
    error = spacing * (share * (1 - share) / SEEDS).sqrt()
    # The smallest subnormals round up so rarely that two or three times too many are no surprise.
    rare = 3 * spacing / SEEDS
    assert (spacing > 0).sum() > 600
    assert ((total / SEEDS - values).abs() <= 5 * error + rare).all()


def test_what_bf16_holds_stays():
    exact = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    exact = exact[~exact.isnan()]
    for seed in range(5):
        rounded = round_stochastically(exact.float(), seed=seed, stream=0)
        assert torch.equal(rounded.view(torch.int16), exact.view(torch.int16))


def test_nan_stays_nan_whatever_its_bits():
    payloads = [0x7F800001, 0x7FFFFFFF, 0x7FC00000, -1, -0x7FFFFF, -0x400000]
    values = torch.tensor(payloads, dtype=torch.int32).view(torch.float32)
    assert values.isnan().all()
    for seed in range(50):
        assert round_stochastically(values, seed=seed, stream=0).isnan().all()


def test_only_what_lies_beyond_the_largest_may_become_infinite():
    last_step = 2.0**120
    values = torch.tensor([LARGEST, LARGEST - last_step / 2, LARGEST + last_step / 4, -LARGEST - last_step / 4])
    rounded = torch.stack([round_stochastically(values, seed=seed, stream=0).float() for seed in range(4000)])
    assert torch.isfinite(rounded[:, :2]).all()
    for beyond in (rounded[:, 2], rounded[:, 3]):
        # A quarter of 4000, five standard deviations either way.
        assert abs(int(beyond.isinf().sum()) - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75)
        assert (beyond.isinf() | (beyond.abs() == LARGEST)).all()


def test_small_steps_add_up_where_rounding_to_nearest_loses_them():
    weight = nearest = torch.ones(4096, dtype=torch.bfloat16)
    for step in range(100):
        weight = round_stochastically(weight.float() - 1e-4, seed=0, stream=step)
        nearest = (nearest.float() - 1e-4).bfloat16()
    assert (nearest == 1).all()
    # One step of bf16 is 2⁻⁸ there; its halves make the standard deviation of each rounding sqrt(1e-4 · 2⁻⁸).
    error = math.sqrt(100 * 1e-4 * 2**-8 / 4096)
    assert abs(weight.double().mean().item() - 0.99) < 5 * error


def test_pieces_round_as_the_whole():
    values = torch.randn(7, 11, generator=torch.Generator().manual_seed(1))
    whole = round_stochastically(values, seed=4, stream=9)
    pieces = [round_stochastically(values.view(-1)[i : i + 5], seed=4, stream=9, offset=i) for i in range(0, 77, 5)]
    assert whole.shape == values.shape
    assert torch.equal(torch.cat(pieces).view_as(whole), whole)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match=r"needs torch\.float32, got torch\.float64"):
        round_stochastically(torch.zeros(3, dtype=torch.float64), seed=0, stream=0)
