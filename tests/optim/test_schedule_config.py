"""What a configuration may say about the schedule, and what it is told when that makes no sense."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.foundation.config import Config
from kexue_train.foundation.errors import ConfigError
from kexue_train.optim.schedule import Knots, Schedule, WarmupCosine, WarmupStableDecay


class Section(Config):
    schedule: Schedule = Knots({100: 1.0})


def parse(schedule: object) -> Schedule:
    return Section.parse({"schedule": schedule}, where="run.yaml").schedule


def test_the_keys_say_which_schedule_is_meant():
    assert parse({1000: 1, "2000": 0.1}) == Knots({1000: 1.0, 2000: 0.1})
    assert parse({"warmup": 10, "stable": 20, "decay": 5}) == WarmupStableDecay(warmup=10, stable=20, decay=5)
    assert parse({"warmup": 10, "cosine": 90, "final": 0}) == WarmupCosine(warmup=10, cosine=90, final=0.0)


def test_python_may_give_a_mapping_or_the_schedule_itself():
    assert Section(schedule={5: 1.0}).schedule == Section(schedule=Knots({5: 1.0})).schedule == Knots({5: 1.0})


@pytest.mark.parametrize(
    "schedule",
    [{5: 1.0, 9: 0.5}, {"warmup": 1, "stable": 2, "decay": 3, "final": 0.5}, {"warmup": 1, "cosine": 2, "final": 0.5}],
)
def test_what_is_written_out_reads_back_the_same(schedule):
    section = Section(schedule=schedule)
    written = yaml.safe_dump(section.model_dump(mode="json"))
    assert Section.parse(yaml.safe_load(written), where="run.yaml") == section


def test_knots_are_piecewise_linear():
    assert [Knots({10: 1.0, 20: 0.5}).multiplier(step) for step in (5, 10, 15, 20, 99)] == [0.5, 1.0, 0.75, 0.5, 0.5]


def test_warmup_stable_decay_at_points_worked_out_by_hand():
    schedule = WarmupStableDecay(warmup=10, stable=80, decay=20, final=0.2)
    values = [schedule.multiplier(step) for step in (1, 5, 10, 50, 90, 95, 100, 110, 10**9)]
    assert values == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0, 0.8, 0.6, 0.2, 0.2])


def test_warm_up_and_cosine_at_points_worked_out_by_hand():
    schedule = WarmupCosine(warmup=10, cosine=300, final=0.2)
    values = [schedule.multiplier(step) for step in (1, 5, 10, 110, 160, 210, 310, 10**9)]
    assert values == pytest.approx([0.1, 0.5, 1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


@pytest.mark.parametrize(
    "schedule", [WarmupStableDecay(warmup=0, stable=0, decay=4, final=0), WarmupCosine(warmup=0, cosine=4, final=0)]
)
def test_without_a_warm_up_the_first_step_is_not_lost(schedule):
    assert schedule.multiplier(0) == 1.0
    assert 0.5 < schedule.multiplier(1) < 1.0


@given(
    schedule=st.one_of(
        st.builds(
            WarmupStableDecay,
            warmup=st.integers(0, 30),
            stable=st.integers(0, 30),
            decay=st.integers(1, 30),
            final=st.floats(0, 1),
        ),
        st.builds(WarmupCosine, warmup=st.integers(0, 30), cosine=st.integers(1, 30), final=st.floats(0, 1)),
    )
)
def test_multipliers_rise_to_one_at_the_end_of_the_warm_up_and_never_rise_again(schedule):
    values = np.array([schedule.multiplier(step) for step in range(100)])
    rise, rest = values[: schedule.warmup + 1], values[schedule.warmup :]
    assert rest[0] == 1.0
    assert (np.diff(rise) > 0).all()
    assert (np.diff(rest) <= 0).all()
    assert rest[-1] == pytest.approx(schedule.final, abs=1e-12)


@pytest.mark.parametrize(
    "schedule", [{7: 0.5, 9: 1.0}, {"warmup": 7, "stable": 1, "decay": 1}, {"warmup": 7, "cosine": 1}]
)
def test_every_schedule_tells_the_steps_of_its_first_rise(schedule):
    assert parse(schedule).warmup == 7


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({}, "schedule: knots {} need at least one knot step: multiplier"),
        ({-5: 1.0}, "with both not negative"),
        ({10: -1.0}, "with both not negative"),
        ({0: 0.0, 9: 0.0}, "zero everywhere, so nothing would be learnt"),
        ({10: "fast"}, 'schedule.10="fast": Input should be a valid number'),
        ({10: float("nan")}, "schedule.10=.*finite"),
        ({"warmup": -1, "cosine": 5}, "schedule.warmup=-1: Input should be greater than or equal to 0"),
        ({"warmup": 1, "cosine": 0}, "schedule.cosine=0: Input should be greater than 0"),
        ({"warmup": 1, "cosine": 5, "final": 2}, "schedule.final=2: Input should be less than or equal to 1"),
        ({"warmup": 1, "stable": 2.5, "decay": 3}, "schedule.stable=2.5: Input should be a valid integer"),
        ({"warmup": 1, "stable": 2}, "'schedule.decay' is missing and has no default; add it"),
        ({"cosine": 2}, "'schedule.warmup' is missing"),
        ({"warmup": 1, "cosin": 5}, "no schedule has the keys warmup, cosin; give knots step: multiplier"),
        ({"warmup": 1, "stable": 5, "cosine": 5}, "no schedule has the keys warmup, stable, cosine"),
        ({"warmup": 1, "1000": 1.0}, "no schedule has the keys warmup, 1000"),
        ({"warmup": 1}, "no schedule has the keys warmup;"),
        (["1000"], r"not a schedule; give knots step: multiplier, as \{1000: 1.0"),
        (0.5, "schedule=0.5: not a schedule"),
    ],
)
def test_messages_name_the_key_what_is_wrong_and_what_is_allowed(schedule, message):
    with pytest.raises(ConfigError, match=f"^run.yaml: .*{message}"):
        parse(schedule)


def test_a_line_number_leads_to_the_wrong_value():
    with pytest.raises(ConfigError, match=r"^run\.yaml:7: schedule\.cosine=-1"):
        Section.parse(
            {"schedule": {"warmup": 1, "cosine": -1}}, where="run.yaml", lines={"schedule": 5, "schedule.cosine": 7}
        )


def test_the_exported_schema_knows_all_three():
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(Section.model_json_schema())
    for good in ({"1000": 1.0}, {"warmup": 1, "stable": 2, "decay": 3}, {"warmup": 1, "cosine": 2, "final": 0.1}):
        assert validator.is_valid({"schedule": good})
    assert not validator.is_valid({"schedule": [1]})
