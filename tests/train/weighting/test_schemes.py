"""What each weighting promises: what it does not see, whom it does not hurt, and what it comes to by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from kexue_train.train.weighting.config import GRADIENT_SCHEMES, WeightingConfig
from kexue_train.train.weighting.constant_units import guessing_loss
from kexue_train.train.weighting.scheme import LEAST_WEIGHT
from tests.train.weighting.conflict import GUESSING, TASKS, Trainer

CONFIGS: dict[str, dict[str, Any]] = {
    "equal": {},
    "initial": {},
    "prior": {},
    "online": {},
    "geometric": {"scheme": "generalised-mean"},
    "cubic": {"scheme": "generalised-mean", "gamma": 3.0},
    "gradient-norm": {},
    "min-norm": {},
    "main-with-guards": {"main": "b"},
}


def config_of(name: str, **more: Any) -> WeightingConfig:
    return WeightingConfig(**({"scheme": name} | CONFIGS[name] | more))


def direction(name: str, **changes: Any) -> torch.Tensor:
    """The direction of the second step's gradient, with nothing moved."""
    trainer = Trainer(config_of(name), **changes)
    trainer.step()
    trainer.step()
    update = trainer.update()
    return update / update.norm()


def turn(left: torch.Tensor, right: torch.Tensor) -> float:
    """1 - cos of two unit vectors."""
    return 1 - float(left @ right)


# --- invariances ------------------------------------------------------------------------------------------------------

BLIND_TO_SCALE = ("initial", "online", "geometric", "gradient-norm", "main-with-guards")
BLIND_TO_SHIFT = ("equal", "prior", *GRADIENT_SCHEMES)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_scale_of_one_loss_changes_no_direction_just_where_that_is_promised(name):
    turned = [turn(direction(name), direction(name, scale={task: 20.0})) for task in TASKS]
    assert (max(map(abs, turned)) < 1e-6) == (name in BLIND_TO_SCALE), turned


@pytest.mark.parametrize("name", CONFIGS)
def test_a_constant_added_to_one_loss_changes_no_direction_just_where_that_is_promised(name):
    turned = [turn(direction(name), direction(name, shift={task: 4.0})) for task in TASKS]
    assert (max(map(abs, turned)) < 1e-6) == (name in BLIND_TO_SHIFT), turned


@pytest.mark.parametrize("name", CONFIGS)
def test_the_scale_of_all_losses_together_changes_no_direction(name):
    assert abs(turn(direction(name), direction(name, scale=dict.fromkeys(TASKS, 20.0)))) < 1e-6


def test_a_unit_of_guessing_that_is_scaled_with_its_loss_changes_nothing():
    scaled = direction("prior", scale={"b": 20.0}, guessing=GUESSING | {"b": 20 * GUESSING["b"]})
    assert abs(turn(direction("prior"), scaled)) < 1e-6


# --- who is hurt ------------------------------------------------------------------------------------------------------


def test_tasks_in_conflict_are_hurt_by_equal_weights_and_not_by_min_norm():
    for name, hurts in (("equal", True), ("min-norm", False)):
        trainer = Trainer(config_of(name), ("a", "b", "c"))
        trainer.step()
        trainer.step()
        served = trainer.model.gradients() @ trainer.update()
        assert (float(served.min()) < 0) == hurts, served


def test_guards_are_not_hurt_beyond_what_a_sketch_can_tell_and_the_main_task_learns():
    trainer = Trainer(config_of("main-with-guards"), ("a", "b", "c", "b"))
    trainer.step()
    trainer.step()
    gradients, update = trainer.model.gradients(), trainer.update()
    cosines = gradients @ update / gradients.norm(dim=1) / update.norm()
    assert float(cosines[1]) > 0.3
    assert float(cosines.min()) > -4 / math.sqrt(1021)


def test_gradient_norm_makes_the_gradients_of_all_micro_batches_as_long():
    trainer = Trainer(config_of("gradient-norm"))
    trainer.step()
    trainer.step()
    lengths = dict(trainer.given[-4:])
    norms = trainer.model.gradients().norm(dim=1)
    each = torch.tensor([lengths[task] for task in TASKS]) * norms
    torch.testing.assert_close(each / each.mean(), torch.ones(3, dtype=torch.float64), rtol=0.15, atol=0)


# --- by hand ----------------------------------------------------------------------------------------------------------


def weights_after(name: str, losses: list[dict[str, float]], **more: Any) -> dict[str, float]:
    """The weights after steps with these losses."""
    trainer = Trainer(config_of(name, **more))
    for step in losses:
        trainer.begin_step()
        for task, loss in step.items():
            trainer.weights.weight(task, torch.tensor(loss))
        trainer.weights.end_step()
    return trainer.weights.weights()


STEPS = [{"a": 4.0, "b": 1.0}, {"a": 2.0, "b": 3.0}]


def test_initial_keeps_the_loss_of_the_first_step():
    assert weights_after("initial", STEPS) == pytest.approx({"a": 1 / 4, "b": 1})


def test_online_follows_the_running_mean():
    assert weights_after("online", STEPS, smoothing=0.75) == pytest.approx({"a": 1 / 3.5, "b": 1 / 1.5})


def test_prior_divides_by_the_loss_of_guessing():
    assert weights_after("prior", STEPS) == {task: 1 / unit for task, unit in GUESSING.items()}
    assert guessing_loss([5, 5, 0]) == pytest.approx(math.log(2))
    assert guessing_loss([1, 3]) == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3))


@pytest.mark.parametrize("gamma", [-2.0, 0.0, 1.0, 3.0])
def test_the_generalised_mean_has_the_derivative_of_its_formula(gamma):
    losses = torch.tensor([4.0, 0.5], dtype=torch.float64, requires_grad=True)
    mean = losses.log().mean().exp() if gamma == 0 else losses.pow(gamma).mean().pow(1 / gamma)
    (expected,) = torch.autograd.grad(2 * mean, losses)
    found = weights_after("geometric", [{"a": 4.0, "b": 0.5}], gamma=gamma)
    assert list(found.values()) == pytest.approx(expected.tolist())


def test_the_value_of_losses_in_units_of_themselves_is_the_number_of_tasks():
    trainer = Trainer(config_of("online"))
    total = sum(trainer.weights.weight(task, torch.tensor(loss)) * loss for task, loss in {"a": 3.0, "b": 0.2}.items())
    assert float(total) == pytest.approx(2)


def test_a_loss_counts_for_ten_units_at_most_and_one_of_zero_is_no_error():
    trainer = Trainer(config_of("online"))
    for loss in (1e-5, 0.0):
        trainer.begin_step()
        assert math.isfinite(float(trainer.weights.weight("a", torch.tensor(loss))))
        trainer.weights.end_step()
    assert float(trainer.weights.weight("a", torch.tensor(8.0)) * 8.0) == pytest.approx(10)


def test_a_task_that_does_not_count_is_watched_all_the_same():
    """Where a guard is served anyhow its weight is all but 0, and comes back when it must."""
    trainer = Trainer(config_of("main-with-guards", smoothing=0.0), ("a", "b", "c"))
    trainer.model.targets["a"] = trainer.model.targets["b"]  # agrees
    trainer.step()
    trainer.step()
    assert dict(trainer.given[-3:])["a"] == LEAST_WEIGHT
    trainer.model.targets["a"] = 2 * trainer.model.shared.detach() - trainer.model.targets["b"]  # is opposed
    trainer.step()
    trainer.step()
    assert dict(trainer.given[-3:])["a"] > 0.1


def test_weights_of_gradients_average_one_over_the_micro_batches_of_a_step():
    for name in GRADIENT_SCHEMES:
        trainer = Trainer(config_of(name), ("a", "a", "a", "b", "c"))
        trainer.step()
        assert [weight for _, weight in trainer.given] == [1.0] * 5  # nothing is known yet
        trainer.step()
        assert sum(weight for _, weight in trainer.given[5:]) == pytest.approx(5, rel=1e-4)
        assert len({weight for _, weight in trainer.given[5:]}) > 1


@pytest.mark.parametrize("name", GRADIENT_SCHEMES)
def test_gradients_are_told_apart_from_the_weights_they_came_with(name):
    """Where nothing moves, weights stay: a gradient that came with one counts as without."""
    trainer = Trainer(config_of(name, smoothing=0.0))
    for _ in range(4):
        trainer.step()
    second, third, fourth = ([weight for _, weight in trainer.given[4 * step :][:4]] for step in (1, 2, 3))
    assert third == pytest.approx(second, rel=1e-4)
    assert fourth == pytest.approx(second, rel=1e-4)


def test_the_shares_of_the_mixture_fall_away_where_that_is_promised():
    """Three micro-batches of a task count together what one would."""
    for name in ("min-norm", "main-with-guards"):
        once, often = direction(name, order=("a", "b", "c")), direction(name, order=("a", "a", "a", "b", "c"))
        assert abs(turn(once, often)) < 1e-6


def test_a_step_without_the_main_task_moves_all_but_nothing():
    trainer = Trainer(config_of("main-with-guards"), ("a", "b", "c"))
    trainer.step()
    trainer.order = trainer.own = ("a", "c", "c")
    trainer.step()
    assert {weight for _, weight in trainer.given[-3:]} == {LEAST_WEIGHT}


def test_a_gradient_that_is_not_finite_leaves_what_was_known():
    trainer = Trainer(config_of("min-norm"), on_nonfinite="skip")
    trainer.step()
    before = trainer.weights.state_dict()["gradients"]["values"]
    trainer.model.scale = dict.fromkeys(TASKS, math.nan)
    trainer.step()
    assert trainer.weights.state_dict()["gradients"]["values"] == before
