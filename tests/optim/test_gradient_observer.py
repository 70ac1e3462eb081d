"""Who wants to see gradients sees each one of each micro-batch, whole and as backward made it."""

from __future__ import annotations

import copy

import numpy as np
import torch

from kexue_train.optim import Tiger, build_param_groups
from kexue_train.optim.options import Options
from tests.reference.toy_model import Toy, draw_gradients


def train(toy: Toy, optimizer: Tiger, gradients: list[dict[str, np.ndarray]]) -> None:
    for gradient in gradients:
        toy.backward(gradient)
        optimizer.step()


def test_an_observer_sees_every_gradient_before_it_is_clipped_and_changes_no_step():
    gradients, seen = draw_gradients(4), []
    ends = []
    for observed in (False, True):
        toy = Toy()
        options = Options(clip_norm=0.1)
        optimizer = Tiger(build_param_groups(toy), lr=1e-3, accumulation_steps=2, options=options)
        if observed:
            optimizer.gradient_observer = lambda index, gradient: seen.append((index, gradient.clone()))
        train(toy, optimizer, gradients)
        ends.append(toy.numpy())
    for name in ends[0]:
        np.testing.assert_array_equal(ends[0][name], ends[1][name])
    names = [tensor.name for tensor in optimizer.tensors]
    for number, gradient in enumerate(gradients):
        own = {names[index]: value for index, value in seen[number * len(names) : (number + 1) * len(names)]}
        assert set(own) == set(names)
        for name, value in own.items():
            torch.testing.assert_close(
                value, torch.from_numpy(gradient["table" if name == "embedding.weight" else name]), rtol=0, atol=0
            )


def test_a_copy_of_the_optimizer_has_no_observer():
    toy = Toy()
    optimizer = Tiger(build_param_groups(toy), lr=1e-3)
    optimizer.gradient_observer = lambda *_: None
    assert copy.deepcopy(optimizer).gradient_observer is None
