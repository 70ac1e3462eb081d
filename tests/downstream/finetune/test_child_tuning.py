"""What moves of a model: a share of the gradients, of the increments, or of the elements that matter most."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kexue_train.downstream.finetune.child_tuning import ChildSteps, fisher_masks
from kexue_train.downstream.finetune.loop import fit
from kexue_train.downstream.settings import FitSettings, HarnessSettings
from kexue_train.foundation.errors import ConfigError, TrainingError
from kexue_train.optim.gradients import keep_mask


class Regression(nn.Module):
    """-log p of numbers with unit variance, y ~ N(x·w, 1), whose information is known: F_i = mean (r x_i)²."""

    def __init__(self, records: int = 40, width: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(records, width, generator=generator) * torch.logspace(-2, 1, width)
        self.y = torch.randn(records, generator=generator)
        self.weight = nn.Parameter(torch.full((width,), 0.1))
        self.bias = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(0.5)

    def loss(self, places: np.ndarray) -> Tensor:
        chosen = torch.from_numpy(places)
        guess = self.dropout(self.x[chosen]) @ self.weight + self.bias
        return 0.5 * (guess - self.y[chosen]).square().mean()

    def information(self) -> Tensor:
        with torch.no_grad():
            residual = self.x @ self.weight + self.bias - self.y
            features = torch.cat((self.x, torch.ones(len(self.x), 1)), 1)
            return (residual[:, None] * features).square().mean(0)


def masks_of(model: Regression, share: float) -> Tensor:
    parameters = [model.weight, model.bias]
    return torch.cat(fisher_masks(model, parameters, len(model.x), model.loss, share, seed=0))


@pytest.mark.parametrize("share", [1e-9, 0.3, 0.5, 1.0])
def test_the_elements_with_the_largest_information_are_kept(share):
    model = Regression()
    count = max(1, round(share * 9))
    expected = model.information().argsort(descending=True)[:count]
    mask = masks_of(model.train(), share)
    assert set(mask.nonzero().flatten().tolist()) == set(expected.tolist())
    assert model.weight.grad is None


def test_only_they_move_and_at_every_step_the_same():
    model = Regression()
    kept, before = masks_of(model, 0.4), torch.cat((model.weight, model.bias)).detach().clone()
    fit(model, 40, model.loss, FitSettings(lr=0.1, epochs=3, gradient_keep=0.4, keep_rule="fisher"), seed=0)
    assert torch.equal(torch.cat((model.weight, model.bias)) != before, kept)


def test_a_loss_that_compares_records_has_no_information_of_one():
    model = Regression()
    settings = FitSettings(gradient_keep=0.5, keep_rule="fisher")
    with pytest.raises(TrainingError, match=r"the loss of one record alone has no gradient.*keep_rule=gradient or inc"):
        fit(model, 40, lambda places: model.loss(places) * (len(places) - 1), settings, seed=0)


def test_an_increment_keeps_its_elements_and_what_is_behind_it_sees_the_whole_gradient():
    keep, seed, step = 0.25, 3, 5
    settings = FitSettings(gradient_keep=keep, keep_rule="increment")
    weights = [nn.Parameter(torch.linspace(-1, 1, 200)), nn.Parameter(torch.ones(50))]
    before = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    grads = [weight.grad.clone() for weight in weights]
    optimizer = torch.optim.SGD(weights, lr=0.5, momentum=0.9)
    ChildSteps(weights, optimizer, settings, seed).move(step)
    for number, (weight, old, grad) in enumerate(zip(weights, before, grads, strict=True)):
        mask = keep_mask(weight.numel(), keep=keep, seed=seed, step=step, tensor=number, device="cpu")
        torch.testing.assert_close(weight.detach(), old - 0.5 * grad * mask / keep)
        assert torch.equal(optimizer.state[weight]["momentum_buffer"], grad)
        assert torch.equal(weight[~mask], old[~mask])


def test_the_mean_of_increments_is_that_of_whole_ones_and_their_variance_is_the_published_one():
    n, keep = 2**18, 0.3
    weight = nn.Parameter(torch.zeros(n, dtype=torch.float64))
    weight.grad = 0.7 + 1.5 * torch.randn(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    settings = FitSettings(gradient_keep=keep, keep_rule="increment")
    ChildSteps([weight], torch.optim.SGD([weight], lr=1.0), settings, seed=0).move(1)
    variance = 1.5**2 + (1 - keep) / keep * (0.7**2 + 1.5**2)
    assert -weight.mean().item() == pytest.approx(0.7, abs=5 * math.sqrt(variance / n))
    assert weight.var().item() == pytest.approx(variance, rel=0.05)


def test_under_adam_dropped_gradients_make_shorter_steps_and_dropped_increments_do_not():
    def travelled(rule: str) -> float:
        weight = nn.Parameter(torch.zeros(4000))
        optimizer = torch.optim.Adam([weight], lr=1e-3)
        steps = ChildSteps([weight], optimizer, FitSettings(gradient_keep=0.25, keep_rule=rule), seed=0)
        for step in range(1, 401):
            weight.grad = torch.ones(4000)
            steps.move(step)
        return -weight.mean().item() / 0.4

    assert travelled("increment") == pytest.approx(1.0, rel=0.02)
    assert travelled("gradient") == pytest.approx(math.sqrt(0.25), rel=0.1)  # of the averages of 0 and 4


@pytest.mark.parametrize("settings", [FitSettings, HarnessSettings])
def test_a_rule_without_a_share_is_refused(settings):
    with pytest.raises(ConfigError, match="keep_rule=fisher has no effect with gradient_keep=1, which keeps all"):
        settings.parse({"keep_rule": "fisher"}, where="options")


@pytest.mark.parametrize("pieces", [1, 3])
def test_flooding_is_of_the_whole_batch(pieces):
    # The mean loss is 1, above the level, and pieces are on both sides of it: no piece may turn around by itself.
    level, losses = 0.5, torch.tensor([0.1, 0.2, 2.7])
    moved = []
    for flood in (0.0, level):
        scale = nn.Parameter(torch.tensor(1.0))
        model = nn.Module()
        model.scale = scale
        settings = FitSettings(lr=0.1, epochs=1, batch_size=3, accumulation_steps=pieces, flood_level=flood)
        found = fit(model, 3, lambda places: scale * losses[torch.from_numpy(places)].mean(), settings, seed=0)  # noqa: B023
        moved.append(scale.item())
        assert found.losses == pytest.approx([1.0])
    assert moved[0] == moved[1] < 1


@pytest.mark.parametrize("pieces", [1, 3])
def test_below_the_level_the_whole_batch_climbs(pieces):
    losses = torch.tensor([0.1, 0.2, 2.7])
    scale = nn.Parameter(torch.tensor(1.0))
    model = nn.Module()
    model.scale = scale
    settings = FitSettings(lr=0.1, epochs=1, batch_size=3, accumulation_steps=pieces, flood_level=1.5)
    found = fit(model, 3, lambda places: scale * losses[torch.from_numpy(places)].mean(), settings, seed=0)
    assert scale.item() > 1
    assert found.losses == pytest.approx([2.0])  # |1 - 1.5| + 1.5
