"""Traces of chosen steps."""

from __future__ import annotations

import gzip
import json

import pytest

from kexue_train.foundation.errors import ConfigError
from tests.train.tiny_training import curve, final_tensors, make_config, same_bits, train_here


def _events(path) -> list[dict]:
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def test_chosen_steps_are_in_a_chrome_trace_and_no_bit_changes(trained, samples, tmp_path):
    out = tmp_path / "out"
    train_here(make_config(profile={"first_step": 3, "steps": 2}), samples, out)
    assert same_bits(final_tensors(out), final_tensors(trained))
    assert curve(out) == curve(trained)
    trace = out / "logs" / "trace-rank-0-step-3.json.gz"
    assert [(line["step"], line["path"]) for line in curve(out, "profile")] == [(4, str(trace))]
    # Called after each of the two micro-batches of a step.
    updates = [event for event in _events(trace) if event.get("name", "").startswith("Optimizer.step")]
    assert len(updates) == 4


def test_a_training_that_ends_inside_the_chosen_steps_keeps_what_was_recorded(samples, tmp_path):
    train_here(make_config(profile={"first_step": 8, "steps": 5}), samples, tmp_path / "out")
    assert _events(tmp_path / "out" / "logs" / "trace-rank-0-step-8.json.gz")


def test_steps_count_from_one():
    with pytest.raises(ConfigError, match=r"train\.logging\.profile\.first_step"):
        make_config(profile={"first_step": 0})
