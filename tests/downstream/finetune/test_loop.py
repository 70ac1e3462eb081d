"""The loop on models small enough to work out by hand."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from kexue_train.downstream.finetune.adafactor import AdaFactor
from kexue_train.downstream.finetune.loop import fit
from kexue_train.downstream.settings import FitSettings
from kexue_train.foundation.errors import TrainingError

Places = npt.NDArray[np.int64]
TARGETS = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])


def settings(**values: object) -> FitSettings:
    return FitSettings.parse({"lr": 0.1, "epochs": 3, "batch_size": 2, **values}, where="test")


class Guess(nn.Module):
    """One number for all records."""

    def __init__(self, start: float = 0.5) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([start]))

    def loss(self, places: Places) -> Tensor:
        return (self.value - TARGETS[torch.from_numpy(places)]).square().mean()


def reference_adafactor(grads: list[npt.NDArray[np.float64]], start: npt.NDArray[np.float64], lr: float) -> object:
    """The published update in float64, one number after the other."""
    parameter, square, momentum = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step, grad in enumerate(grads, 1):
        beta_2 = 1 - step**-0.8
        square = beta_2 * square + (1 - beta_2) * (grad**2 + 1e-30)
        update = grad / np.sqrt(square)
        update /= max(1.0, np.sqrt((update**2).mean()))
        momentum = 0.9 * momentum + 0.1 * update
        parameter = parameter - lr * max(1e-3, np.sqrt((parameter**2).mean())) * momentum
    return parameter


def test_adafactor_follows_its_definition() -> None:
    random = np.random.default_rng(0)
    start, grads = random.normal(size=(3, 4)), [random.normal(size=(3, 4)) for _ in range(6)]
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = AdaFactor([parameter], lr=0.03)
    for grad in grads:
        parameter.grad = torch.tensor(grad)
        optimizer.step()
    np.testing.assert_allclose(parameter.detach().numpy(), reference_adafactor(grads, start, 0.03), rtol=1e-12)


def test_a_row_without_gradient_stays_and_a_zero_tensor_leaves_zero() -> None:
    table, bias = nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.zeros(3))
    table.grad, bias.grad = torch.tensor([[0.0] * 3, [1.0] * 3]), torch.ones(3)
    AdaFactor([table, bias]).step()
    assert torch.equal(table[0], torch.ones(3))
    assert (bias < 0).all()


def test_every_record_is_seen_once_per_epoch_in_another_order() -> None:
    model, seen = Guess(), []
    fit(model, 5, lambda places: seen.extend(places.tolist()) or model.loss(places), settings(), seed=1)
    epochs = [seen[i : i + 5] for i in (0, 5, 10)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_seed_fixes_everything_and_leaves_the_global_generator_alone() -> None:
    def trained(seed: int) -> list[float]:
        model, dropout = Guess(), nn.Dropout(0.5)
        fit(model, 5, lambda places: dropout(model.loss(places)), settings(gradient_keep=0.5), seed=seed)
        return model.value.tolist()

    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = trained(7)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert trained(7) == first
    assert trained(8) != first


def test_a_batch_in_pieces_gives_the_step_of_the_whole_batch() -> None:
    models = [Guess(), Guess()]
    for model, pieces in zip(models, (1, 3), strict=True):
        fit(model, 5, model.loss, settings(batch_size=5, accumulation_steps=pieces), seed=0)
    torch.testing.assert_close(models[0].value, models[1].value)


def test_the_weights_of_the_best_epoch_are_kept() -> None:
    model, values = Guess(), []

    def score() -> float:
        assert not model.training
        values.append(model.value.item())
        return (1.0, 3.0, 3.0, 2.0)[len(values) - 1]

    result = fit(model, 5, model.loss, settings(epochs=4), seed=0, score=score)
    assert (result.best_epoch, result.scores) == (2, [1.0, 3.0, 3.0, 2.0])
    assert model.value.item() == values[1]


def test_flooding_turns_back_at_its_level() -> None:
    """With one record the loss can reach 0; flooded it comes back to the level b."""
    found = []
    for level in (0.0, 0.2):
        model = Guess(0.8)
        one = torch.tensor([0])
        fit(model, 1, lambda _: model.loss(one.numpy()), settings(epochs=300, flood_level=level), seed=0)  # noqa: B023
        found.append(model.loss(one.numpy()).item())
    assert found[0] < 1e-3
    assert found[1] == pytest.approx(0.2, abs=0.05)


def test_the_learning_rate_rises_and_falls_to_almost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = AdaFactor.step
    monkeypatch.setattr(AdaFactor, "step", lambda self: rates.append(self.param_groups[0]["lr"]) or step(self))
    model = Guess()
    fit(model, 5, model.loss, settings(epochs=4, batch_size=1, warmup=0.2), seed=0)
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    np.testing.assert_allclose(np.diff(rates[3:]), -0.1 / 17)
    assert rates[-1] > 0


def test_a_loss_that_is_not_finite_stops_with_the_step() -> None:
    model = Guess()
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan; lower the learning rate 0\.1"):
        fit(model, 5, lambda places: model.loss(places) * math.nan, settings(), seed=0)
    with pytest.raises(ValueError, match="num_records=0"):
        fit(model, 0, model.loss, settings(), seed=0)
