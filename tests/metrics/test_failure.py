"""The facts of a failure on their way from a worker to its launcher."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import pytest

from kexue_train.metrics.failure import FailureKind, WorkerFailure, read_failure
from kexue_train.train.faults.spikes import EndedBySpikeError

FAILURE = WorkerFailure(
    kind=FailureKind.LOSS_NONFINITE, error="E", message="m", exit_code=1, rank=3, log="l", step=7, value="nan"
)


def test_a_failure_is_read_as_it_was_written(tmp_path: Path) -> None:
    FAILURE.write(tmp_path / "failure.json")
    assert read_failure(tmp_path / "failure.json") == FAILURE


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"kind": "ConfigError", "message": "of an older version"}'])
def test_what_is_no_failure_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "failure.json").write_text(text)
    assert read_failure(tmp_path / "failure.json") is None


def test_the_facts_of_a_spike_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(EndedBySpikeError("a jump", 7, math.inf)))
    assert (str(error), error.step, error.loss, error.exit_code) == ("a jump", 7, math.inf, 1)
