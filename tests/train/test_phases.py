"""Phases of length and batch size: which steps read which rows, whoever trains and wherever one begins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.batches import rows_of_step
from kexue_train.foundation.errors import ConfigError
from kexue_train.train.config import TrainConfig
from kexue_train.train.phases import Phase, phase_after, plan_phases
from tests.batches.epochs import epochs_of_step
from tests.train.tiny_training import make_config

TOTAL = {16: 23, 32: 11}
PHASES = st.lists(st.tuples(st.integers(1, 6), st.sampled_from([16, 32]), st.integers(1, 9)), min_size=1, max_size=5)


def plan(phases: list[tuple[int, int, int]]) -> tuple[Phase, ...]:
    values = [{"steps": steps, "seq_len": seq_len, "global_batch_size": rows} for steps, seq_len, rows in phases]
    config = TrainConfig.parse({"phases": values, "micro_batch_size": 1}, where="test")
    return plan_phases(config, [seq_len for _, seq_len, _ in phases], [1] * len(phases))


@settings(max_examples=100)
@given(PHASES, st.integers(0, 2**32 - 1))
def test_the_phases_of_a_length_read_one_stream_without_gap_or_repetition(phases, seed):
    planned = plan(phases)
    for seq_len, total in TOTAL.items():
        mine = [phase for phase in planned if phase.seq_len == seq_len]
        read = [
            rows_of_step(total, seed, phase.global_batch_size, step, rows_before=phase.rows_before)
            for phase in mine
            for step in range(phase.steps)
        ]
        whole = np.concatenate(read) if read else np.array([], int)
        one_by_one = [rows_of_step(total, seed, 1, place)[0] for place in range(len(whole))]
        assert whole.tolist() == one_by_one
        for first in range(0, len(whole) - total + 1, total):  # every whole epoch
            assert sorted(whole[first : first + total].tolist()) == list(range(total))


@settings(max_examples=50)
@given(PHASES)
def test_counters_agree_with_counting_step_by_step(phases):
    planned = plan(phases)
    step = all_rows = micro_steps = 0
    rows = dict.fromkeys(TOTAL, 0)
    for steps, seq_len, batch in phases:
        for _ in range(steps):
            phase = phase_after(planned, step)
            assert (phase.seq_len, phase.global_batch_size, phase.accumulation_steps) == (seq_len, batch, batch)
            assert (phase.rows(step), phase.all_rows(step)) == (rows[seq_len], all_rows)
            assert phase.micro_steps(step) == micro_steps
            step, all_rows, micro_steps = step + 1, all_rows + batch, micro_steps + batch
            rows[seq_len] += batch
    assert phase_after(planned, step) is planned[-1]
    assert planned[-1].end == step == sum(steps for steps, *_ in phases)


def test_epochs_count_the_rows_before():
    assert epochs_of_step(10, 4, 0, rows_before=8).tolist() == [0, 0, 1, 1]


def test_without_phases_there_is_one_of_the_top_level_values():
    config = TrainConfig(steps=7, global_batch_size=64, micro_batch_size=8, num_workers=2)
    (phase,) = plan_phases(config, [128], [8])
    assert (phase.number, phase.first_step, phase.end, phase.seq_len) == (1, 0, 7, 128)
    assert (phase.global_batch_size, phase.micro_batch_size, phase.accumulation_steps) == (64, 8, 4)


def test_a_phase_takes_what_it_leaves_out_from_the_top_level_and_steps_are_the_sum():
    config = make_config(
        steps=5,
        global_batch_size=16,
        phases=[
            {"steps": 3, "seq_len": 16, "global_batch_size": 24},
            {"steps": 2, "seq_len": 32, "micro_batch_size": 2},
        ],
    ).train
    assert config.steps == 5
    assert [tuple(phase) for phase in config.phase_settings] == [(3, 16, 24, 4), (2, 32, 16, 2)]
    assert config.seq_lens == (16, 32)
    assert make_config(**config.model_dump(mode="json")).train == config  # the resolved configuration, read again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 6, "phases": [{"steps": 5}]}, r"steps=6, but the phases have 5 in all; leave steps out"),
        ({"phases": [{"steps": 4, "seq_len": 16}, {"steps": 4}]}, r"phase 2 names no seq_len and others do"),
        (
            {"phases": [{"steps": 4}, {"steps": 4, "global_batch_size": 30}]},
            r"phase 2: global_batch_size=30 is not a multiple of .*=4 · num_workers=1 = 4; take .*=28 or 32, or .*=3$",
        ),
        (
            {"num_workers": 2, "phases": [{"steps": 8, "global_batch_size": 7, "micro_batch_size": "auto"}]},
            r"phase 1: global_batch_size=7 .* num_workers=2 = 2; take global_batch_size=6 or 8, or another num_workers",
        ),
        (
            {"num_workers": 16},
            r"=8 is not a multiple of micro_.*=4 · num_workers=16 = 64; take .*=64, or another num_work",
        ),
        ({"phases": [{"steps": 0}]}, r"phases\.0\.steps=0: Input should be greater than 0"),
        ({"phases": [{"step": 8}]}, r"unknown key 'train\.phases\.0\.step', did you mean 'steps'"),
        ({"micro_batch_size": 0}, r"train\.micro_batch_size.*=0: Input should be greater than 0"),
        ({"micro_batch_size": "most"}, r"train\.micro_batch_size.*=\"most\": Input should be 'auto'"),
    ],
)
def test_phases_that_do_not_go_together_are_refused_with_what_would(change, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**change)


def test_one_of_steps_and_phases_must_be_given():
    with pytest.raises(ConfigError, match="neither steps nor phases are given; say how many steps to train"):
        TrainConfig.parse({"global_batch_size": 64}, where="test")


def test_how_phases_are_cut_into_micro_batches_is_not_part_of_the_result_but_the_rest_is():
    base = {"steps": 4, "seq_len": 16, "global_batch_size": 8}
    other = [base | change for change in ({"steps": 8}, {"seq_len": 32}, {"global_batch_size": 16})]
    recipes = [make_config(steps=phase["steps"], phases=[phase]).recipe("x") for phase in [base, *other]]
    assert all(a.difference(b) for a, b in itertools.combinations(recipes, 2))
    same = make_config(steps=4, phases=[base | {"micro_batch_size": 2}], global_batch_size=4)
    assert same.recipe("x") == recipes[0]
