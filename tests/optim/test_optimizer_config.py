"""The ``optimizer`` section: what it refuses, and how."""

from __future__ import annotations

import pytest

from kexue_train.foundation.errors import ConfigError
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.schedule import Knots


def parse(**values: object) -> OptimizerConfig:
    return OptimizerConfig.parse(values, where="run.yaml")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("lr", 0.0, "greater than 0"),
        ("lr", 3.0, "less than or equal to 1"),
        ("beta", 1.0, "less than 1"),
        ("weight_decay", -0.01, "greater than or equal to 0"),
        ("lr", "fast", "valid number"),
    ],
)
def test_messages_name_the_key_the_value_and_what_is_allowed(key, value, allowed):
    with pytest.raises(ConfigError, match=rf"run\.yaml: {key}=.*{value}.*{allowed}"):
        parse(**{key: value})


@pytest.mark.parametrize("schedule", [{}, {-5: 1.0}, {10: -1.0}], ids=["empty", "negative step", "negative value"])
def test_a_schedule_needs_sound_knots(schedule):
    with pytest.raises(
        ConfigError, match=r"schedule: knots .*at least one knot step: multiplier with both not negative"
    ):
        parse(schedule=schedule)


def test_a_schedule_of_zeros_is_refused():
    with pytest.raises(ConfigError, match="zero everywhere, so nothing would be learnt"):
        parse(schedule={0: 0.0, 100: 0.0})


def test_knots_written_in_yaml_are_numbers():
    assert parse(schedule={"100": 1, "2000": 0.1}).schedule == Knots({100: 1.0, 2000: 0.1})


def test_a_misspelt_key_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match="unknown key 'weight_decy', did you mean 'weight_decay'"):
        parse(weight_decy=0.1)


@pytest.mark.parametrize("name", ["lamb", "lion"])
def test_an_optimizer_of_a_library_needs_gradients(name):
    parse(name=name, accumulate="gradient")
    with pytest.raises(ConfigError, match=f"name={name} accumulates in the gradient: set accumulate=gradient"):
        parse(name=name)
    with pytest.raises(ConfigError, match="leave out embeddings, weissi"):
        parse(name=name, accumulate="gradient", embeddings="lazy", weissi=0.1)


@pytest.mark.parametrize("changes", [{"name": "sgdm"}, {"accumulate": "gradient"}], ids=str)
def test_bf16_states_are_of_tiger_in_its_momentum(changes):
    with pytest.raises(ConfigError, match="states=bf16 needs name=tiger and accumulate=momentum"):
        parse(states="bf16", **changes)


def test_each_optimizer_has_its_own_decay():
    assert [parse(name=name).momentum_decay for name in ("tiger", "sgdm", "adamw")] == [0.965, 0.9, 0.9]
    assert parse(name="adamw", beta=0.8).momentum_decay == 0.8
