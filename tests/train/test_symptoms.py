"""Warnings of a training: a table of lines of metrics and what they show."""

from __future__ import annotations

import math

import pytest

from kexue_train.train.monitor.symptoms import SymptomWatch, find_symptoms

GOOD = {"loss": 5.0, "data_wait": 0.02, "tokens_per_second": 1000.0, "memory_share": 0.6}


def lines(*changes: tuple[int, dict]) -> list[dict]:
    return [{**GOOD, **change} for number, change in changes for _ in range(number)]


SLOW, STARVED = {"tokens_per_second": 499.0}, {"data_wait": 0.11}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (lines((1, {})), set()),
        (lines((60, {})), set()),
        (lines((5, {}), (1, {"loss": math.nan})), {"loss"}),
        (lines((1, {"loss": math.inf})), {"loss"}),
        (lines((1, {"loss": math.nan}), (1, {})), set()),
        (lines((1, {"memory_share": 0.951})), {"memory"}),
        (lines((1, {"memory_share": 0.949})), set()),
        (lines((1, {"data_wait": 0.9}), (9, STARVED)), set()),  # too few to say
        (lines((1, {}), (10, STARVED)), {"loader"}),
        (lines((1, {}), (10, {"data_wait": 0.1})), set()),
        (lines((1, {"data_wait": 0.9}), (10, {})), set()),  # the loader comes up
        (lines((1, {}), (4, STARVED), (6, {})), set()),
        (lines((30, {}), (10, STARVED)), {"loader"}),
        (lines((10, {}), (3, SLOW)), {"slow"}),
        (lines((10, {}), (2, SLOW)), set()),
        (lines((9, {}), (3, SLOW)), set()),
        (lines((10, {}), (3, {"tokens_per_second": 501.0})), set()),
        (lines((10, {}), (3, SLOW), (1, {})), set()),
        (lines((20, SLOW), (20, {})), set()),  # faster than before is no symptom
        (lines((12, {}), (10, SLOW | STARVED)), {"slow", "loader"}),
    ],
)
def test_symptoms_of_lines(given, expected):
    assert set(find_symptoms(given)) == expected


def test_messages_hold_the_figure_and_what_to_do():
    assert "11% of the time; raise train.workers.num_loader_workers" in find_symptoms(lines((11, STARVED)))["loader"]
    assert "499 tokens/s from the usual 1,000" in find_symptoms(lines((10, {}), (3, SLOW)))["slow"]
    assert "96% of the memory" in find_symptoms(lines((1, {"memory_share": 0.96})))["memory"]


def test_a_symptom_is_said_once_while_it_lasts_and_again_when_it_has_been_away_for_long():
    watch = SymptomWatch()
    full = {**GOOD, "memory_share": 0.99}
    said = [set(watch.look(line)) for line in [full] * 60 + [GOOD] * 30 + [full] + [GOOD] * 60 + [full]]
    assert [number for number, names in enumerate(said) if names] == [0, 60 + 30 + 1 + 60]
