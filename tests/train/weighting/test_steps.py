"""Weights within training: what they do under sign steps, and a resume within a step."""

from __future__ import annotations

import io
import json

import pytest
import torch

from kexue_train.foundation.errors import ConfigError
from kexue_train.optim import build_param_groups
from kexue_train.optim.library import GradientAccumulation
from kexue_train.optim.tiger_update import TigerRule
from kexue_train.train.weighting.build import build_weights
from kexue_train.train.weighting.config import GRADIENT_SCHEMES, WeightingConfig
from tests.train.weighting.conflict import GUESSING, TASKS, Conflict, Trainer
from tests.train.weighting.test_schemes import CONFIGS, config_of

PRIOR = config_of("prior")
LIGHT, HEAVY = GUESSING, {"a": 30.0, "b": 0.01, "c": 2.0}
"""Two sets of units, so of weights."""


def end(order: tuple[str, ...], guessing: dict[str, float], *, beta: float, steps: int = 6) -> torch.Tensor:
    """The parameters after steps of Tiger, whose tasks are those of ``order``, a micro-batch per task in turn."""
    trainer = Trainer(PRIOR, order, rule=TigerRule(beta), lr=1e-3, guessing=guessing)
    for _ in range(steps):
        trainer.step()
    return trainer.parameters()


def end_apart(guessing: dict[str, float], *, beta: float) -> torch.Tensor:
    """The parameters after steps of Tiger that hold one task each, two micro-batches of it."""
    trainer = Trainer(PRIOR, ("a", "a"), rule=TigerRule(beta), lr=1e-3, guessing=guessing)
    for task in (*TASKS, *TASKS):
        trainer.order = trainer.own = (task, task)
        trainer.step()
    return trainer.parameters()


def test_tasks_that_share_a_step_are_weighed_by_sign_steps():
    assert not torch.equal(end(("a", "b", "c"), LIGHT, beta=0.9), end(("a", "b", "c"), HEAVY, beta=0.9))
    assert not torch.equal(end(("a", "b", "c"), LIGHT, beta=0.0), end(("a", "b", "c"), HEAVY, beta=0.0))


def test_tasks_that_never_share_a_step_are_weighed_by_the_momentum_only():
    assert torch.equal(end_apart(LIGHT, beta=0.0), end_apart(HEAVY, beta=0.0))
    assert not torch.equal(end_apart(LIGHT, beta=0.9), end_apart(HEAVY, beta=0.9))


def test_the_head_of_a_task_moves_as_far_under_any_weight():
    """Its gradient is the weight times its own, and the sign knows no weight."""
    moved = []
    for guessing in (LIGHT, HEAVY):
        trainer = Trainer(PRIOR, TASKS, rule=TigerRule(0.9), lr=1e-3, guessing=guessing)
        before = trainer.model.heads["b"].clone()
        trainer.step()
        moved.append(trainer.model.heads["b"].detach() - before)
    torch.testing.assert_close(*moved, rtol=0, atol=0)
    assert moved[0].abs().min() > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resume_within_a_step_gives_the_same_bits(name):
    def trainer() -> Trainer:
        return Trainer(config_of(name), rule=TigerRule(0.9), lr=1e-3)

    whole, first, second = trainer(), trainer(), trainer()
    for one in (whole, first):
        one.step()
        one.step()
        one.begin_step()
        for task in one.own[:2]:
            one.micro_batch(task)
    saved = io.BytesIO()
    torch.save((first.model.state_dict(), first.optimizer.state_dict()), saved)
    weights = json.dumps(first.weights.state_dict(), allow_nan=False)
    saved.seek(0)
    model, optimizer = torch.load(saved)
    second.model.load_state_dict(model)
    second.optimizer.load_state_dict(optimizer)
    second.weights.load_state_dict(json.loads(weights))
    for one in (whole, second):
        for task in one.own[2:]:
            one.micro_batch(task)
        one.weights.end_step()
        one.step()
    assert second.given == whole.given[-len(second.given) :]
    assert torch.equal(second.parameters(), whole.parameters())
    assert second.weights.state_dict() == whole.weights.state_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_state_of_another_scheme_or_of_other_tasks_is_refused(name):
    state = Trainer(config_of(name)).weights.state_dict()
    with pytest.raises(ValueError, match="the saved weighting is"):
        Trainer(config_of(name)).weights.load_state_dict(state | {"tasks": ["a", "b"]})
    with pytest.raises(ValueError, match="go on with the scheme"):
        Trainer(config_of(name)).weights.load_state_dict(state | {"scheme": "another"})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_task_that_is_not_in_the_mix_is_an_error(name):
    weights = Trainer(config_of(name)).weights
    with pytest.raises(KeyError):
        weights.begin_step({"d": 1})


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "equal"])
def test_weights_without_effect_are_refused(name):
    with pytest.raises(ConfigError, match="every step has one micro-batch"):
        Trainer(config_of(name), ("a",))
    with pytest.raises(ConfigError, match="has no effect on one task"):
        Trainer(config_of(name), ("a", "a"), guessing={"a": 1.0})


def test_equal_weights_go_with_any_steps():
    assert Trainer(config_of("equal"), ("a",), guessing={"a": 1.0}).weights.weight("a", torch.tensor(3.0)) == 1.0


@pytest.mark.parametrize("name", GRADIENT_SCHEMES)
def test_gradients_that_are_not_seen_one_by_one_are_refused(name):
    with pytest.raises(ConfigError, match=r"set optimizer.accumulate=momentum.*scheme=online"):
        Trainer(config_of(name), accumulate="gradient")
    model = Conflict({}, {})
    groups = build_param_groups(model)
    library = GradientAccumulation(
        torch.optim.SGD(groups, lr=0.1), accumulation_steps=2, options=Trainer(config_of("equal")).optimizer.options
    )
    with pytest.raises(ConfigError, match="a library's optimizer"):
        build_weights(
            config_of(name), GUESSING, micro_batches_per_step=2, seed=0, optimizer=library, shared=[model.shared]
        )


def test_a_main_task_that_is_missing_or_has_no_effect_is_refused():
    with pytest.raises(ConfigError, match="'d' is not in the mix; take one of a, b, c"):
        Trainer(config_of("main-with-guards", main="d"))
    for values, message in (
        ({"scheme": "main-with-guards"}, "needs main"),
        ({"scheme": "min-norm", "main": "a"}, "main=a has no effect with scheme=min-norm"),
        ({"scheme": "online", "gamma": 1.0}, "gamma=1.0 has no effect with scheme=online"),
        ({"scheme": "prior", "smoothing": 0.5}, "smoothing=0.5 has no effect with scheme=prior"),
    ):
        with pytest.raises(ConfigError, match=message):
            WeightingConfig.parse(values, where="run.yaml")


def test_a_task_that_needs_no_guess_is_refused_under_prior():
    with pytest.raises(ConfigError, match=r"task a: .*one label only teaches nothing"):
        Trainer(PRIOR, guessing=GUESSING | {"a": 0.0})
