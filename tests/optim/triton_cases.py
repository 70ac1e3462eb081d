"""What the fused kernels promise, on the device there is: ``test_triton_tiger.py`` runs this file in a process of its
own, because whether Triton compiles or interprets is decided when it is imported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kexue_train.optim import triton_tiger
from kexue_train.optim.fused_tiger import FusedTiger
from kexue_train.optim.param_groups import Role
from kexue_train.optim.random_bits import round_stochastically
from kexue_train.optim.step_sizes import ScalarLayout

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TYPES = [torch.float32, torch.bfloat16]
SEED, STREAM = 2**40 + 5, (9 << 24)
# Full tiles and parts of one, several tiles, lines and rows of many widths, odd ones too, a single row, nothing.
SHAPES = {
    (32, 512): Role.MATRIX,
    (67, 128): Role.EMBEDDING,
    (130, 131): Role.MATRIX,
    (1, 1): Role.MATRIX,
    (0, 4): Role.MATRIX,
    (40, 77): Role.EMBEDDING,
    (1, 256): Role.EMBEDDING,
    (5,): Role.VECTOR,
}
MATRIX = list(SHAPES).index((130, 131))  # five chunks, the last not full


class Tensors:
    """Random parameters and momenta, which are views of one tensor, with ``FusedTiger`` over them."""

    def __init__(self, kind: torch.dtype, momentum_kind: torch.dtype | None = None, gap: int = 0, **options: float):
        generator = torch.Generator().manual_seed(0)

        def draw(shape: tuple[int, ...], scale: float, dtype: torch.dtype) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype)

        self.params = [draw(shape, 0.02, kind) for shape in SHAPES]
        sizes = [param.numel() + gap for param in self.params]
        flat = draw((sum(sizes),), 1e-3, momentum_kind or kind)
        self.momenta = [m[: p.numel()].view(p.shape) for m, p in zip(flat.split(sizes), self.params, strict=True)]
        for momentum in self.momenta:
            momentum.view(-1)[::5] = 0.0
        self.layout = ScalarLayout([p.shape for p in self.params], list(SHAPES.values()), DEVICE)
        self.flags = torch.zeros(len(SHAPES), device=DEVICE)
        self.streams = [4 * i + 3 for i in range(len(SHAPES))]
        self.momentum_streams = [4 * i for i in range(len(SHAPES))]
        self.fused = FusedTiger(
            self.params, self.momenta, self.layout, flags=self.flags,
            streams=self.streams, momentum_streams=self.momentum_streams, **options,
        )  # fmt: skip

    def scalars(self, scale: float) -> Tensor:
        return torch.rand(self.layout.total, generator=torch.Generator().manual_seed(1)).to(DEVICE) * scale

    def gradients(self, kind: torch.dtype = torch.float32, gap: int = 0) -> dict[int, Tensor]:
        """One for each parameter; with a gap not at an address that vectors are read from."""
        found = {}
        for index, param in enumerate(self.params):
            grad = torch.randn(param.numel() + gap, generator=torch.Generator().manual_seed(index)).to(DEVICE, kind)
            found[index] = grad[gap:].view(param.shape)
        return found


def multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """a·b + c in fp32: rounded once by a GPU, twice by the interpreter."""
    if DEVICE.type == "cpu":
        return a * b + c
    return (a.double() * b.double() + c.double()).float()


def stored(values: Tensor, kind: torch.dtype, stream: int) -> Tensor:
    return values if kind == torch.float32 else round_stochastically(values, seed=SEED, stream=stream)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Bit by bit, but for the few elements where the oracle's fp64 sum is halfway between two fp32 numbers."""
    if DEVICE.type == "cuda":
        assert (actual != expected).float().mean() <= 1e-3
        torch.testing.assert_close(
            actual, expected, rtol=2.0**-7 if actual.dtype == torch.bfloat16 else 2.0**-22, atol=0
        )
    else:
        assert torch.equal(actual, expected)


def moved(tensors: Tensors, step: Tensor, decay: Tensor, dead_zone: float = 0.0) -> list[Tensor]:
    """What ``move`` has to make of the parameters, by PyTorch, tensor by tensor."""
    result = []
    scalars = zip(tensors.layout.split(step), tensors.layout.split(decay), strict=True)
    for param, momentum, stream, (steps, decays) in zip(
        tensors.params, tensors.momenta, tensors.streams, scalars, strict=True
    ):
        theta = param.float().view(len(steps), -1)
        sign = momentum.float().view(theta.shape).sign() * (momentum.float().view(theta.shape).abs() >= dead_zone)
        theta = theta - multiply_add(theta, decays[:, None], steps[:, None] * sign)
        result.append(stored(theta.view(param.shape), param.dtype, STREAM + stream))
    return result


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_sums_of_squares_are_those_of_float64(kind):
    tensors = Tensors(kind)
    sums = tensors.layout.split(tensors.fused.sum_squares())
    for param, count, actual in zip(tensors.params, tensors.layout.counts, sums, strict=True):
        expected = param.double().cpu().numpy().reshape(count, -1) ** 2
        # A sum of positive numbers in a tree: one rounding per level and per step of the few that are taken in turn.
        np.testing.assert_allclose(actual.cpu().numpy(), expected.sum(1), rtol=30 * 2.0**-24)


def test_sums_of_squares_are_the_same_every_time():
    first = Tensors(torch.float32).fused.sum_squares().clone()
    tensors = Tensors(torch.float32)
    assert all(torch.equal(tensors.fused.sum_squares(), first) for _ in range(3))


@pytest.mark.parametrize("gap", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("momentum_kind", TYPES, ids=str)
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_move_equals_the_formula(kind, momentum_kind, gap):
    tensors = Tensors(kind, momentum_kind, gap=gap)
    step, decay = tensors.scalars(1e-3), tensors.scalars(1e-5)
    momenta = [momentum.clone() for momentum in tensors.momenta]
    expected = moved(tensors, step, decay)
    tensors.fused.move(step, decay, seed=SEED, stream=STREAM)
    for param, wanted in zip(tensors.params, expected, strict=True):
        assert_same(param, wanted)
    assert all(map(torch.equal, tensors.momenta, momenta))


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # of NumPy, which interprets the kernels
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_no_step_and_no_decay_leave_every_bit(kind):
    tensors = Tensors(kind)
    tensors.params[0].view(-1)[:1] = torch.inf  # 0 · ∞ would be NaN
    before = [param.clone() for param in tensors.params]
    nothing = tensors.scalars(0.0)
    tensors.fused.move(nothing, nothing, seed=SEED, stream=STREAM)
    assert all(map(torch.equal, tensors.params, before))


def test_small_momenta_count_as_zero():
    tensors = Tensors(torch.float32, dead_zone=1e-3)
    step, decay = tensors.scalars(1e-3), tensors.scalars(1e-5)
    expected = moved(tensors, step, decay, dead_zone=1e-3)
    tensors.fused.move(step, decay, seed=SEED, stream=STREAM)
    for param, wanted in zip(tensors.params, expected, strict=True):
        assert_same(param, wanted)


@pytest.mark.parametrize(("grad_kind", "gap"), [(torch.float32, 0), (torch.bfloat16, 1), (torch.float16, 0)], ids=str)
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_fold_equals_the_formula(kind, grad_kind, gap):
    tensors = Tensors(kind)
    decay, weight = torch.tensor([0.965, 0.035 / 3], device=DEVICE)
    gradients = tensors.gradients(grad_kind, gap)
    expected = [
        stored(multiply_add(gradients[index].float(), weight, momentum.float() * decay), kind, STREAM + 4 * index)
        for index, momentum in enumerate(tensors.momenta)
    ]
    tensors.fused.fold(gradients, decay=0.965, weight=0.035 / 3, seed=SEED, stream=STREAM)
    for momentum, wanted in zip(tensors.momenta, expected, strict=True):
        assert_same(momentum, wanted)
    assert not tensors.flags.any()


def test_who_is_folded_together_does_not_matter():
    together, apart = Tensors(torch.bfloat16), Tensors(torch.bfloat16)
    gradients = together.gradients()
    settings = {"decay": 0.965, "weight": 0.01, "seed": SEED, "stream": STREAM}
    together.fused.fold(gradients, **settings)
    for group in ([7, 2], [0], [5, 3], [1], [4, 6]):
        apart.fused.fold({index: gradients[index] for index in group}, **settings)
    assert all(map(torch.equal, together.momenta, apart.momenta))


@pytest.mark.parametrize("place", [0, 4095, 4096, 9999, -1])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_gradient_only_raises_its_flag(value, place, monkeypatch):
    monkeypatch.setattr(
        triton_tiger, "CHECKERS", 2
    )  # so that a program of ``check_gradients`` has several chunks to look at
    tensors = Tensors(torch.bfloat16)
    before = [momentum.clone() for momentum in tensors.momenta]
    gradients = {index: torch.ones_like(tensors.params[index]) for index in (MATRIX, MATRIX + 1)}
    gradients[MATRIX].view(-1)[place] = value
    tensors.fused.fold(gradients, decay=0.5, weight=1.0, seed=SEED, stream=STREAM)
    changed = [not torch.equal(*pair) for pair in zip(tensors.momenta, before, strict=True)]
    assert [index for index, is_changed in enumerate(changed) if is_changed] == [MATRIX + 1]
    assert tensors.flags.tolist() == [float(index == MATRIX) for index in range(len(SHAPES))]


def test_the_gradient_after_a_bad_one_is_folded():
    tensors = Tensors(torch.float32)
    good = torch.ones_like(tensors.params[0])
    for grad in (good / 0.0, good):
        before = tensors.momenta[0].clone()
        tensors.fused.fold({0: grad}, decay=1.0, weight=0.5, seed=SEED, stream=STREAM)
    assert_same(tensors.momenta[0], before + 0.5)
    assert tensors.flags[0] == 1.0


def test_the_largest_finite_gradients_are_not_bad():
    tensors = Tensors(torch.float32)
    grad = torch.full_like(tensors.params[0], torch.finfo(torch.float32).max)
    tensors.fused.fold({0: grad}, decay=1.0, weight=2.0**-100, seed=SEED, stream=STREAM)
    assert not tensors.flags.any()
    assert torch.isfinite(tensors.momenta[0]).all()


def test_seed_and_stream_may_lie_on_the_device():
    numbers, memory = Tensors(torch.bfloat16), Tensors(torch.bfloat16)
    seed, stream = (torch.tensor([number], device=DEVICE) for number in (SEED, STREAM))
    grad, step = torch.ones_like(numbers.params[0]), numbers.scalars(1e-3)
    for tensors, where in ((numbers, {"seed": SEED, "stream": STREAM}), (memory, {"seed": seed, "stream": stream})):
        tensors.fused.fold({0: grad}, decay=1.0, weight=0.01, **where)
        tensors.fused.move(step, step, **where)
    assert all(map(torch.equal, numbers.params + numbers.momenta, memory.params + memory.momenta))


def test_tensors_put_elsewhere_are_found_again():
    tensors = Tensors(torch.float32)
    left_behind = tensors.params[0].data
    tensors.params[0].data = left_behind.clone()
    step = tensors.scalars(1e-3)
    expected = moved(tensors, step, step)[0]
    tensors.fused.move(step, step, seed=SEED, stream=STREAM)
    assert_same(tensors.params[0], expected)
    assert not torch.equal(left_behind, expected)


@pytest.mark.parametrize(
    "params",
    [
        [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)],
        [torch.zeros(3, dtype=torch.float64)] * 2,
        [torch.zeros(3, 4).T] * 2,
    ],
    ids=["two types", "float64", "not contiguous"],
)
def test_other_tensors_are_refused(params):
    layout = ScalarLayout([p.shape for p in params], [Role.MATRIX] * 2, torch.device("cpu"))
    with pytest.raises(ValueError, match="needs contiguous tensors"):
        FusedTiger(params, [torch.zeros(12)] * 2, layout, flags=torch.zeros(2), streams=[0, 1], momentum_streams=[2, 3])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a CUDA device")
def test_a_captured_graph_goes_on_counting():
    captured, eager = Tensors(torch.bfloat16), Tensors(torch.bfloat16)
    stream, grad = torch.tensor([STREAM], device=DEVICE), torch.ones_like(captured.params[0])
    step = captured.scalars(1e-3)

    def window(tensors: Tensors) -> None:
        tensors.fused.fold({0: grad}, decay=0.9, weight=0.01, seed=SEED, stream=stream)
        tensors.fused.move(step * tensors.fused.sum_squares(), step, seed=SEED, stream=stream)
        stream.add_(1 << 24)

    window(Tensors(torch.bfloat16))  # compiles
    stream.fill_(STREAM)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        window(captured)
    for _ in range(3):
        graph.replay()
    stream.fill_(STREAM)
    for _ in range(3):
        window(eager)
    assert all(map(torch.equal, captured.params + captured.momenta, eager.params + eager.momenta))
