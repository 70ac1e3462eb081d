"""Which function starts the workers."""

from pathlib import Path
from typing import get_args

import pytest

from kexue_train.executor.config import ExecutionConfig
from kexue_train.train import launch
from kexue_train.train.config import LauncherName
from kexue_train.train.job import JobConfig, TrainDir, values_to_show, with_mirror, write_job
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


def test_the_job_of_workers_has_no_credentials_of_the_mirror_and_they_get_it_all_the_same(tmp_path: Path) -> None:
    mirror = "s3://name:secret9x@bucket/run"
    job = make_config(mirror=mirror)
    written = write_job(job, TrainDir(tmp_path))
    assert "secret9x" not in written.read_text()
    read = JobConfig.load(written, [])
    assert read.train.checkpoints.mirror == "s3://***@bucket/run"
    assert with_mirror(read, mirror) == job
    assert "secret9x" not in str(values_to_show(job))
