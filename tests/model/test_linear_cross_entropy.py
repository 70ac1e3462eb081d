"""Projection and cross-entropy in chunks: the plain loss's numbers, without its logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kexue_train.model.linear_cross_entropy import linear_cross_entropy

ROWS, WIDTH, WORDS = 23, 7, 31


def inputs(
    rows: int = ROWS, words: int = WORDS, *, dtype: torch.dtype = torch.float64, seed: int = 0, ignored: float = 0.3
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random states and weights that want gradients, and labels of which about ``ignored`` are -100."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(words, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(words, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def plain(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(hidden @ weight.T, labels, reduction="sum")


def lse(logits: torch.Tensor) -> float:
    """The loss's own logsumexp of one row of logits, fp64: with label 0 the loss is logsumexp minus logit 0."""
    scores = linear_cross_entropy(torch.ones(1, 1, dtype=torch.float64), logits[:, None], torch.tensor([0]))
    return (scores.loss + logits[0]).item()


@pytest.mark.parametrize("rows_at_a_time", [1, 5, 23, 512])
def test_loss_and_gradients_are_those_of_the_plain_version(rows_at_a_time):
    hidden, weight, labels = inputs()
    scores = linear_cross_entropy(hidden, weight, labels, rows_at_a_time=rows_at_a_time)
    torch.testing.assert_close(scores.loss, plain(hidden, weight, labels))
    found = torch.autograd.grad(3 * scores.loss, (hidden, weight))
    expected = torch.autograd.grad(3 * plain(hidden, weight, labels), (hidden, weight))
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize(("device", "chunks"), [("cpu", 9), ("cuda", 2)])
def test_a_gpu_takes_more_rows_at_a_time(monkeypatch, device, chunks):
    rows = linear_cross_entropy.__globals__["_ROWS_AT_A_TIME"]
    monkeypatch.setitem(rows, "cpu", rows[device])

    class Chunks(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func is torch.ops.aten.gather.default
            return func(*args, **(kwargs or {}))

    with Chunks() as found:
        linear_cross_entropy(*inputs(4097))
    assert found.count == chunks


def test_gradients_are_the_slopes_of_the_loss():
    hidden, weight, labels = inputs(5, 6)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, labels, rows_at_a_time=2).loss, (hidden, weight)
    )


def test_counts_are_those_of_the_plain_version():
    hidden, weight, labels = inputs(200, 3)
    scores = linear_cross_entropy(hidden, weight, labels, rows_at_a_time=7)
    assert scores.num_labels == (labels >= 0).sum()
    assert scores.correct == ((hidden @ weight.T).argmax(1) == labels).sum() > 0
    assert not scores.correct.requires_grad


def test_ignored_rows_count_for_nothing():
    hidden, weight, labels = inputs(ignored=0.5)
    real = labels >= 0
    with_them = linear_cross_entropy(hidden, weight, labels)
    without = linear_cross_entropy(hidden[real], weight, labels[real])
    torch.testing.assert_close(with_them.loss, without.loss)
    gradient = torch.autograd.grad(with_them.loss, hidden)[0]
    assert (gradient[~real] == 0).all()
    assert (gradient[real] != 0).any(1).all()


@pytest.mark.parametrize("rows", [0, 9])
def test_without_labels_loss_and_gradients_are_zero(rows):
    hidden, weight, labels = inputs(rows)
    scores = linear_cross_entropy(hidden, weight, torch.full_like(labels, -100))
    assert [score.item() for score in scores] == [0, 0, 0]
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(scores.loss, (hidden, weight)))


@pytest.mark.parametrize("size", [1e3, 1e5])
def test_large_logits_stay_finite(size):
    hidden, weight, labels = inputs(dtype=torch.float32)
    scores = linear_cross_entropy(hidden * size, weight, labels)
    torch.testing.assert_close(scores.loss, plain(hidden.double() * size, weight.double(), labels).float())


def test_autocast_multiplies_in_bf16_and_sums_in_fp32():
    hidden, weight, labels = inputs(300, 50, dtype=torch.float32)
    expected = plain(hidden, weight, labels)
    with torch.autocast("cpu", torch.bfloat16):
        scores = linear_cross_entropy(hidden, weight, labels, rows_at_a_time=64)
    scores.loss.backward()
    assert scores.loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    assert scores.loss != expected
    torch.testing.assert_close(scores.loss, expected, rtol=2e-3, atol=0)  # bf16 has 8 bits
    exact_gradients = torch.autograd.grad(expected, (hidden, weight))
    for gradient, exact in zip((hidden.grad, weight.grad), exact_gradients, strict=True):
        assert (gradient - exact).norm() < 1e-2 * exact.norm()


class AllSizes(TorchDispatchMode):
    """The number of elements of every tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        found = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max([self.largest, *found])
        return result


def largest_tensor(loss: Any, *arguments: Any, **options: Any) -> int:
    with AllSizes() as sizes:
        value = loss(*arguments, **options)
        getattr(value, "loss", value).backward()
    return sizes.largest


def test_logits_never_exist_whole():
    rows, words = 640, 300
    assert largest_tensor(plain, *inputs(rows, words)) == rows * words
    assert largest_tensor(linear_cross_entropy, *inputs(rows, words), rows_at_a_time=64) == 64 * words


def test_without_gradients_none_are_made():
    hidden, weight, labels = inputs(8, 300)
    with torch.no_grad():
        scores = linear_cross_entropy(hidden, weight, labels)
    assert not scores.loss.requires_grad
    torch.testing.assert_close(scores.loss, plain(hidden, weight, labels).detach())


@pytest.mark.parametrize(
    ("hidden", "weight", "labels"), [((3, 4), (5, 6), (3,)), ((3, 4), (5, 4), (2,)), ((1, 3, 4), (5, 4), (3,))]
)
def test_shapes_that_do_not_fit_are_refused(hidden, weight, labels):
    with pytest.raises(ValueError, match="do not fit"):
        linear_cross_entropy(torch.zeros(hidden), torch.zeros(weight), torch.zeros(labels, dtype=torch.long))


LOGITS = st.lists(st.floats(-50, 50), min_size=1, max_size=12).map(lambda x: torch.tensor(x, dtype=torch.float64))
TWO_LOGITS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.floats(-50, 50), min_size=n, max_size=n)] * 2)
).map(lambda pair: tuple(torch.tensor(x, dtype=torch.float64) for x in pair))  # fmt: skip
ROUNDING = 1e-9


# The inequalities of https://kexue.fm/archives/9070.
@given(LOGITS)
def test_logsumexp_lies_between_the_largest_and_that_plus_log_n(x):
    largest, log_n = x.max().item(), math.log(len(x))
    assert largest - ROUNDING <= lse(x) <= largest + log_n + ROUNDING
    assert lse(x) >= x.mean().item() + log_n - ROUNDING


@given(LOGITS, st.floats(0.01, 1.0))
def test_logsumexp_of_a_low_temperature_is_the_largest(x, temperature):
    gap = temperature * lse(x / temperature) - x.max().item()
    assert -ROUNDING <= gap <= temperature * math.log(len(x)) + ROUNDING


@given(TWO_LOGITS, st.floats(1.1, 4.0))
def test_logsumexp_is_at_least_any_mean_plus_its_entropy(pair, t):
    x, p = pair[0], pair[1].softmax(0)
    renyi = -(p**t).sum().log().item() / (t - 1)
    assert lse(x) >= (p * x).sum().item() + renyi - ROUNDING
    assert lse(x) >= (p * x).sum().item() + torch.special.entr(p).sum().item() - ROUNDING
    own = x.softmax(0)
    assert lse(x) == pytest.approx((own * x).sum().item() + torch.special.entr(own).sum().item(), abs=1e-8)


@given(TWO_LOGITS, st.floats(0, 1), st.floats(-100, 100))
def test_logsumexp_is_convex_moves_no_faster_than_its_input_and_shifts_with_it(pair, share, shift):
    x, y = pair
    assert abs(lse(x) - lse(y)) <= (x - y).abs().max().item() + ROUNDING
    assert lse(share * x + (1 - share) * y) <= share * lse(x) + (1 - share) * lse(y) + ROUNDING
    assert lse(x + shift) == pytest.approx(lse(x) + shift, abs=1e-8)
