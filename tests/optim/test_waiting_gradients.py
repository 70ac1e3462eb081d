"""Gradients that are folded several at a time: in time for whoever reads moments, and with the same bits."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kexue_train.optim import Tiger, accumulation, build_param_groups, moment_average, ranks, waiting_gradients
from kexue_train.optim.options import Options
from kexue_train.optim.random_bits import Rounding
from kexue_train.optim.ranks import RankAverage
from kexue_train.optim.waiting_gradients import FoldSettings, WaitingGradients
from tests.optim.folded_together import FoldedTogether
from tests.reference.toy_model import Toy, draw_gradients, parameters_equal

SETTINGS = FoldSettings(0.9, 0.1, Rounding(0, 0))
MOST = 3


class Folded:
    """Notes which tensors are folded together."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []
        self.waiting = WaitingGradients(self.fold, most=MOST)

    def fold(self, gradients: Mapping[int, Tensor], _: FoldSettings) -> None:
        self.together.append(list(gradients))

    def add(self, index: int, numel: int = 1, settings: FoldSettings = SETTINGS, **how: Any) -> None:
        self.waiting.add(index, torch.zeros(numel, **how), settings)


def test_a_launch_takes_no_more_than_it_can():
    folded = Folded()
    for index in range(7):
        folded.add(index)
    folded.waiting.fold()
    folded.waiting.fold()
    assert folded.together == [[0, 1, 2], [3, 4, 5], [6]]


def test_large_gradients_do_not_wait(monkeypatch):
    monkeypatch.setattr(waiting_gradients, "MOST_BYTES", 400)
    folded = Folded()
    for index, numel in enumerate((99, 1, 100, 1, 1)):
        folded.add(index, numel)
    assert folded.together == [[0, 1], [2]]


def test_no_more_bytes_wait_than_are_promised(monkeypatch):
    monkeypatch.setattr(waiting_gradients, "MOST_BYTES", 4000)
    folded, rng, alive = Folded(), np.random.default_rng(0), list[weakref.ref[Tensor]]()
    for index in range(300):
        grad = torch.zeros(int(rng.integers(1, 900)))
        alive.append(weakref.ref(grad))
        folded.waiting.add(index, grad, SETTINGS)
        del grad
        assert sum(tensor.numel() * 4 for ref in alive if (tensor := ref()) is not None) < 4000


@pytest.mark.parametrize(
    "other",
    [
        {"settings": SETTINGS._replace(decay=1.0)},
        {"settings": SETTINGS._replace(weight=0.5)},
        {"settings": SETTINGS._replace(rounding=Rounding(0, 1))},
        {"dtype": torch.bfloat16},
        {"index": 0},
    ],
    ids=["decay", "weight", "rounding", "type", "tensor"],
)
def test_what_cannot_be_folded_together_is_folded_apart(other):
    folded = Folded()
    folded.add(0)
    folded.add(**{"index": 1, **other})
    folded.waiting.fold()
    assert folded.together == [[0], [other.get("index", 1)]]


# --- the optimizer with a storage that lets gradients wait ------------------------------------------------------------


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(accumulation, "choose_storage", FoldedTogether)
    return monkeypatch


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient": {"accumulate": "gradient"},
    "clipped": {"clip_norm": 0.5},
    "dropout": {"gradient_keep": 0.5},
    "lazy tensors": {"lazy_tensors": True},
    "bf16": {"bf16_states": True},
}


def train(*, dtype: torch.dtype, bad: bool, options: dict[str, Any]) -> tuple[Toy, Tiger]:
    toy = Toy(dtype)
    optimizer = Tiger(build_param_groups(toy), lr=2e-3, accumulation_steps=3, options=Options(**options))
    for number, gradients in enumerate(draw_gradients(9)):
        if bad and number == 4:
            gradients["matrix"][0, 0] = np.inf
        if number in (3, 4, 5):
            del gradients["vector"]
        toy.backward(gradients)
        if number == 7:
            toy.backward(draw_gradients(1, seed=5)[0])
        optimizer.step()
    return toy, optimizer


@pytest.mark.parametrize("bad", [False, True], ids=["good", "bad gradient"])
@pytest.mark.parametrize("name", RUNS)
def test_folding_together_gives_the_same_bits(name, bad, monkeypatch):
    how: dict[str, Any] = {"dtype": torch.bfloat16 if name == "bf16" else torch.float32, "bad": bad}
    ends = []
    for storage in (accumulation.choose_storage, FoldedTogether):
        monkeypatch.setattr(accumulation, "choose_storage", storage)
        toy, optimizer = train(**how, options=RUNS[name])
        ends.append({**toy.numpy(), **{k: m.float().numpy().copy() for k, m in optimizer.named_moments().items()}})
    assert isinstance(optimizer.storage, FoldedTogether)
    assert parameters_equal(*ends)


def test_after_backward_no_gradient_waits(together):
    toy = Toy()
    optimizer = Tiger(build_param_groups(toy), accumulation_steps=2)
    momentum = optimizer.momentum(toy.vector)
    gradients = draw_gradients(1)[0]
    toy.backward(gradients)
    assert optimizer.storage.waiting._gradients == {}
    np.testing.assert_allclose(momentum.numpy(), gradients["vector"] * (1 - 0.965) / 2, rtol=1e-12)


class Buckets:
    """Stands for ``torch.distributed`` on two ranks; notes how many gradients wait when a bucket leaves."""

    ReduceOp = SimpleNamespace(MAX="max")
    Work = object
    group = SimpleNamespace(WORLD=None)

    def __init__(self, waiting: Any) -> None:
        self._waiting, self.left = waiting, list[int]()

    def all_reduce(self, values: Tensor, *_: str, async_op: bool = False, **__: Any) -> SimpleNamespace:
        if async_op:
            self.left.append(len(self._waiting()._gradients))
        return SimpleNamespace(wait=lambda: values.mul_(2))

    def __getattr__(self, name: str) -> Any:
        values = {"is_available": True, "is_initialized": True, "get_world_size": 2, "get_backend": "gloo"}
        return lambda: values[name]


def test_a_bucket_leaves_with_all_its_gradients(together):
    toy = Toy()
    optimizer = Tiger(build_param_groups(toy))
    buckets = Buckets(lambda: optimizer.storage.waiting)
    together.setattr(ranks, "dist", buckets)
    together.setattr(moment_average, "RankAverage", partial(RankAverage, bucket_bytes=8 * 29))
    optimizer._lay_out()
    for number in range(3):
        buckets.left.clear()
        toy.backward(draw_gradients(1)[0])
        assert len(buckets.left) == (2 if number else 0)  # during backward from the second step on
        optimizer.step()
        assert buckets.left == [0, 0]


class Fails(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(*_: Any) -> Tensor:
        raise RuntimeError("out of memory")


def interrupted() -> tuple[nn.Linear, Tiger]:
    """A backward that fails when two of three gradients are there, of which one waits."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    model = nn.Sequential(first, second)
    optimizer = Tiger(build_param_groups(model), accumulation_steps=2)
    with pytest.raises(RuntimeError, match="out of memory"):
        second(Fails.apply(first(torch.ones(1, 2)))).sum().backward()
    assert len(optimizer.storage.waiting._gradients) == 2
    return second, optimizer


@pytest.mark.parametrize("reads", ["momentum", "named_moments", "state_dict", "restart_at", "deepcopy"])
def test_whoever_reads_moments_finds_what_an_interrupted_backward_has_brought(reads, together):
    layer, optimizer = interrupted()
    momentum = optimizer.state[layer.bias]["momentum"]
    assert not momentum.any()
    match reads:
        case "momentum":
            optimizer.momentum(layer.bias)
        case "restart_at":
            optimizer.restart_at(0)
        case "deepcopy":
            copy.deepcopy(optimizer)
        case _:
            getattr(optimizer, reads)()
    assert momentum.all()


def test_a_state_that_is_loaded_is_not_added_to(together):
    layer, optimizer = interrupted()
    saved = Tiger(build_param_groups(nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2)))).state_dict()
    optimizer.load_state_dict(saved)
    layer(torch.zeros(1, 2)).sum().backward()  # of the bias, 1 each
    np.testing.assert_allclose(optimizer.momentum(layer.bias).numpy(), (1 - 0.965) / 2, rtol=1e-6)


def test_the_next_backward_after_an_interrupted_one_folds_at_its_end(together):
    layer, optimizer = interrupted()
    layer(torch.zeros(1, 2)).sum().backward()
    assert optimizer.storage.waiting._gradients == {}


def test_waiting_gradients_keep_no_optimizer_alive(together):
    gc.disable()
    try:
        toy = Toy()
        optimizer = Tiger(build_param_groups(toy), accumulation_steps=2)
        toy.backward(draw_gradients(1)[0])
        optimizer.step()
        gone = weakref.ref(optimizer)
        del optimizer
        assert gone() is None
    finally:
        gc.enable()
