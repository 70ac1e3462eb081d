"""Restarts within a budget, and what is not tried again."""

from __future__ import annotations

import pytest

from kexue_train.foundation import errors
from kexue_train.foundation.errors import ConfigError, StaleArtifactError, TrainingError
from kexue_train.train.job import TrainDir
from kexue_train.train.ray_launch import workers_now
from kexue_train.train.restarts import (
    MachineDrained,
    WorkersLost,
    raise_reported_failure,
    report_failure,
    run_with_restarts,
)
from tests.train.tiny_training import make_config


class Workers:
    """What happens at each start, in turn: an error, or a number: a checkpoint and then the loss of a worker."""

    def __init__(self, folder, *events):
        self.paths, self.events, self.starts = TrainDir(folder), list(events), 0

    def __call__(self):
        self.starts += 1
        event = self.events.pop(0)
        if isinstance(event, int):
            (self.paths.checkpoints / f"step-{event:08d}").mkdir(parents=True)
            raise WorkersLost("rank 1 was killed by SIGKILL")
        if event is not None:
            raise event

    def run(self, max_restarts):
        run_with_restarts(self, self.paths, max_restarts=max_restarts)


_LOST, _DRAINED = WorkersLost("rank 0 hung"), MachineDrained("preempted")


def test_lost_workers_are_started_again_until_they_end(tmp_path):
    workers = Workers(tmp_path, _LOST, _LOST, None)
    workers.run(max_restarts=2)
    assert workers.starts == 3


def test_the_budget_is_for_faults_without_a_checkpoint_between_them(tmp_path):
    workers = Workers(tmp_path, 1, 2, 3, 4, _LOST, 5, None)
    workers.run(max_restarts=2)
    assert workers.starts == 7
    with pytest.raises(
        TrainingError, match=r"rank 0 hung\. .* 2 restarts .*train\.faults\.max_restarts.* same command again"
    ):
        Workers(tmp_path, 6, _LOST, _LOST, _LOST, None).run(max_restarts=2)


def test_a_drained_machine_is_no_fault(tmp_path):
    workers = Workers(tmp_path, *[_DRAINED] * 9, None)
    workers.run(max_restarts=0)
    assert workers.starts == 10


def test_what_a_worker_found_wrong_is_not_tried_again(tmp_path):
    workers = Workers(tmp_path, ConfigError("no such thing"), None)
    with pytest.raises(ConfigError):
        workers.run(max_restarts=5)
    assert workers.starts == 1


def test_once_a_stop_is_asked_for_nothing_is_started_again(tmp_path):
    (tmp_path / "stop").touch()
    workers = Workers(tmp_path, _LOST, None)
    workers.run(max_restarts=5)
    assert workers.starts == 1


@pytest.mark.parametrize("error", [ConfigError("x"), TrainingError("y"), StaleArtifactError("z", "its reason")])
def test_an_error_told_through_a_file_keeps_its_class_or_at_least_its_words(tmp_path, error):
    paths = TrainDir(tmp_path)
    paths.logs.mkdir()
    raise_reported_failure(paths)
    report_failure(error, paths)
    with pytest.raises(errors.KexueError, match=str(error)) as caught:
        raise_reported_failure(paths)
    assert type(caught.value) in (type(error), TrainingError)


@pytest.mark.parametrize(("room", "workers"), [(9, 4), (4, 4), (3, 2), (2, 2), (1, 2)])
def test_a_start_takes_as_many_workers_as_there_is_room_for_and_the_batches_multiply_out_for(room, workers):
    assert workers_now(make_config(num_workers=4, min_workers=2, micro_batch_size=2), room) == workers


def test_without_min_workers_all_are_waited_for():
    assert workers_now(make_config(num_workers=2), 1) == 2
