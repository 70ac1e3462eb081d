"""Random bits that are a function of where they are used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.optim.random_bits import random_bits

MANY = 1 << 18
# Of 20 or so numbers that are normal if the bits are random, none is this far out but once in 10⁵ changes of the hash.
FAR = 5.0


def bits(numel: int, **where: int) -> np.ndarray:
    return random_bits(numel, **{"seed": 1, "stream": 2, **where}, device="cpu").numpy()


def chi_square_deviation(counts: np.ndarray) -> float:
    """How many standard deviations the chi-square of equally likely counts is from its mean."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def correlation_deviation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1] * np.sqrt(first.size))


def finalised(word: int) -> int:
    for shift, multiplier in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        word = (word ^ word >> shift) * multiplier % 2**32
    return word ^ word >> 15


def expected_bits(seed: int, stream: int, element: int) -> int:
    """The definition, in integers without bounds."""
    page, place = divmod(element, 2**32)
    keys = []
    for key in (0x9E3779B9, 0xBB67AE85):
        for word in (seed % 2**32, seed // 2**32, stream % 2**32, stream // 2**32, page):
            key = finalised(key ^ word)
        keys.append(key)
    word = finalised(finalised(place // 2 ^ keys[0]) ^ keys[1])
    return word // 2**16 if place % 2 else word % 2**16


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 100), st.integers(0, 9))
def test_every_element_follows_from_seed_stream_and_index(seed, stream, offset, numel):
    expected = [expected_bits(seed, stream, offset + i) for i in range(numel)]
    assert bits(numel, seed=seed, stream=stream, offset=offset).tolist() == expected


@pytest.mark.parametrize("edge", [2**31, 2**32, 2**33])
def test_index_may_pass_any_word(edge):
    assert bits(9, offset=edge - 4).tolist() == [expected_bits(1, 2, edge - 4 + i) for i in range(9)]


@given(st.integers(0, 300), st.integers(0, 300))
def test_slice_equals_the_slice_of_the_whole(start, numel):
    np.testing.assert_array_equal(bits(numel, offset=start), bits(600)[start : start + numel])


def test_values_are_int32_of_sixteen_bits():
    values = random_bits(MANY, seed=0, stream=0, device="cpu")
    assert values.dtype == torch.int32
    assert values.min() == 0
    assert values.max() == 2**16 - 1


@pytest.mark.parametrize("stream", range(4))
def test_bits_and_bytes_are_uniform(stream):
    values = bits(MANY, stream=stream)
    for bit in range(16):
        assert abs((values >> bit & 1).mean() - 0.5) < FAR * 0.5 / np.sqrt(MANY)
    for byte in (values & 0xFF, values >> 8):
        assert abs(chi_square_deviation(np.bincount(byte, minlength=256))) < FAR


@pytest.mark.parametrize(
    "neighbour",
    [{"seed": 2}, {"stream": 3}, {"offset": 1}, {"offset": 2}, {"seed": 1 + 2**32}, {"stream": 2 + 2**32}],
    ids=str,
)
def test_neighbours_are_independent(neighbour):
    first, second = bits(MANY), bits(MANY, **neighbour)
    assert abs(correlation_deviation(first, second)) < FAR
    for bit in range(16):
        assert abs(correlation_deviation(first >> bit & 1, second >> bit & 1)) < FAR
    pairs = np.bincount((first & 15) << 4 | second & 15, minlength=256)
    assert abs(chi_square_deviation(pairs)) < FAR


def test_one_element_over_many_streams_is_uniform():
    values = np.array([bits(1, stream=stream, offset=5)[0] for stream in range(1 << 13)])
    assert abs(chi_square_deviation(np.bincount(values >> 10, minlength=64))) < FAR


def test_segments_beyond_32_bits_differ():
    assert (bits(MANY) != bits(MANY, offset=2**32)).mean() > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same():
    where = {"seed": 2**40 + 7, "stream": 2**50 + 3, "offset": 2**32 - 100}
    torch.testing.assert_close(
        random_bits(1000, **where, device="cuda").cpu(), random_bits(1000, **where, device="cpu"), rtol=0, atol=0
    )
