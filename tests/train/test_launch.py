"""Which function starts the workers."""

from typing import get_args

import pytest

from kexue_train.executor.config import ExecutionConfig
from kexue_train.train import launch
from kexue_train.train.config import LauncherName
from tests.train.tiny_training import make_config


def test_every_launcher_that_the_configuration_allows_has_a_function():
    assert set(launch.LAUNCHERS) == set(get_args(LauncherName))


@pytest.mark.parametrize("name", get_args(LauncherName))
def test_a_job_is_started_by_the_launcher_that_it_names(name, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        launch, "LAUNCHERS", {other: started.append for other in get_args(LauncherName) if other == name}
    )
    job = make_config(launcher=name)
    launch.launcher_of(job, tmp_path / "samples", tmp_path, ExecutionConfig(), 29500)()
    assert [(given.job, given.samples, given.port) for given in started] == [(job, tmp_path / "samples", 29500)]
