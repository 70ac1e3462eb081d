"""The optimizer of a configuration, and what training asks of every one of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kexue_train.optim.build import build_optimizer, set_learning_rate
from kexue_train.optim.config import OptimizerConfig
from tests.reference.toy_model import Toy, draw_gradients, parameters_equal

CHOICES: dict[str, dict[str, Any]] = {
    "tiger": {},
    "tiger in the gradient": {"accumulate": "gradient"},
    "tiger in bf16": {"states": "bf16"},
    "lazy rows": {"embeddings": "lazy"},
    "adamw for embeddings": {"embeddings": "adamw"},
    "everything": {
        "clip": {"norm": 1.0},
        "gradient_keep": 0.7,
        "weissi": 0.01,
        "weissi_sparsity": 0.01,
        "dead_zone": 1e-30,
    },
    "sgdm": {"name": "sgdm"},
    "adamw": {"name": "adamw"},
    "lamb": {"name": "lamb", "accumulate": "gradient"},
    "lion": {"name": "lion", "accumulate": "gradient", "clip": {"norm": 1.0}},
}


def build(choice: str, toy: Toy, k: int = 2) -> Any:
    config = OptimizerConfig.parse(CHOICES[choice], where="test")
    if config.name in ("lamb", "lion"):
        pytest.importorskip("pytorch_optimizer")
    return build_optimizer(config, toy, accumulation_steps=k, seed=0)


def toy_for(choice: str, seed: int = 0) -> Toy:
    return Toy(torch.bfloat16 if choice == "tiger in bf16" else torch.float32, seed=seed)


def train(toy: Toy, optimizer: Any, gradients: list[dict[str, np.ndarray]]) -> list[bool]:
    moved = []
    for gradient in gradients:
        toy.backward(gradient)
        optimizer.observe_tokens(torch.tensor([1, 2]))
        moved.append(optimizer.step())
    return moved


@pytest.mark.parametrize("choice", CHOICES)
def test_parameters_move_at_the_end_of_a_window_only(choice):
    toy = toy_for(choice)
    optimizer, before = build(choice, toy), toy.numpy()
    assert train(toy, optimizer, draw_gradients(1)) == [False]
    assert parameters_equal(before, toy.numpy())
    assert train(toy, optimizer, draw_gradients(1)) == [True]
    assert not parameters_equal(before, toy.numpy())
    assert optimizer.steps == 1


@pytest.mark.parametrize("choice", CHOICES)
def test_training_goes_on_from_weights_and_named_moments(choice):
    gradients, straight, first, second = draw_gradients(12), *(toy_for(choice, seed) for seed in (0, 0, 9))
    whole, head, tail = build(choice, straight), build(choice, first), build(choice, second)
    train(straight, whole, gradients)
    train(first, head, gradients[:6])
    second.load_state_dict(first.state_dict())
    moments = {name: value.clone() for name, value in head.named_moments().items()}
    for name, value in tail.named_moments().items():
        value.copy_(moments.pop(name))
    assert not moments
    tail.restart_at(3)
    train(second, tail, gradients[6:])
    assert parameters_equal(straight.numpy(), second.numpy())


@pytest.mark.parametrize("choice", CHOICES)
def test_a_bad_gradient_does_no_lasting_harm(choice):
    toy = toy_for(choice)
    optimizer, gradients = build(choice, toy), draw_gradients(8)
    gradients[3]["matrix"][0, 0] = np.nan
    train(toy, optimizer, gradients)
    assert all(np.isfinite(value).all() for value in toy.numpy().values())
    assert all(torch.isfinite(value).all() for value in optimizer.named_moments().values())
    assert optimizer.nonfinite_report() == ({"matrix": 1}, 1)


@pytest.mark.parametrize("choice", ["tiger", "lion", "adamw for embeddings"])
def test_the_schedule_multiplies_the_learning_rate_of_each_group(choice):
    optimizer = build(choice, toy_for(choice))
    before = [group["lr"] for group in optimizer.param_groups]
    for multiplier in (0.5, 0.1):
        set_learning_rate(optimizer, multiplier)
        assert [group["lr"] for group in optimizer.param_groups] == [lr * multiplier for lr in before]
    assert (choice == "adamw for embeddings") == (len(set(before)) == 2)
