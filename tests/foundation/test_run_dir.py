"""The run folder: one process at a time, one run per folder, a log of stages that survives torn lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from kexue_train.foundation.errors import ArtifactError, ConfigError, KexueError, ResourceError, TrainingError
from kexue_train.foundation.run_dir import RunDir
from kexue_train.report.run_data import read_stage_records


def hold_lock(root: Path, repository: Path) -> subprocess.Popen[str]:
    code = (
        "import sys, time; from pathlib import Path; from kexue_train.foundation.run_dir import RunDir\n"
        "with RunDir(Path(sys.argv[1])).lock(): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True, cwd=repository
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.slow
def test_a_second_process_is_refused_with_the_number_of_the_first_until_that_is_killed(
    tmp_path: Path, repository: Path
) -> None:
    with hold_lock(tmp_path, repository) as holder:
        try:
            expected = pytest.raises(ResourceError, match=f"process {holder.pid} is working in this run folder")
            with expected, RunDir(tmp_path).lock():
                pass
        finally:
            holder.kill()
    with RunDir(tmp_path).lock():
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_lock_refuses_a_second_holder_and_is_free_after_the_first(tmp_path: Path) -> None:
    run, expected = RunDir(tmp_path / "new"), pytest.raises(ResourceError, match=f"process {os.getpid()} is working")
    with run.lock(), expected, run.lock():
        pass
    with RunDir(tmp_path / "new").lock():
        pass


def test_a_folder_that_would_go_with_a_ray_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with (
        pytest.raises(ConfigError, match=r"runs/base: .*deletes after it.*--run-dir /shared"),
        RunDir(Path("runs/base")).lock(),
    ):
        pass
    assert not (copy / "runs").exists()


def test_an_error_of_the_work_under_the_lock_is_not_taken_for_a_lock_conflict(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="of the work"), RunDir(tmp_path).lock():
        raise BlockingIOError("of the work")


def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="the run folder cannot be written"), RunDir(tmp_path / "file").lock():
        pass


def test_every_record_of_a_stage_is_a_line_of_its_own(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.record_stage(stage="shuffle", seconds=1.5, source="维基")
    run.record_stage(stage="samples", seconds=2)
    assert [json.loads(line) for line in run.stages.read_text(encoding="utf-8").splitlines()] == [
        {"stage": "shuffle", "seconds": 1.5, "source": "维基"},
        {"stage": "samples", "seconds": 2},
    ]


@pytest.mark.parametrize("kept", range(1, 40))
def test_a_line_torn_anywhere_costs_only_itself(tmp_path: Path, kept: int) -> None:
    run = RunDir(tmp_path)
    run.record_stage(stage="corpus", seconds=1)
    whole = run.stages.read_bytes()
    run.record_stage(stage="shuffle", source="维", n=1)
    run.stages.write_bytes(run.stages.read_bytes()[: len(whole) + kept])
    run.record_stage(stage="samples", seconds=2)
    assert {record["stage"] for record in read_stage_records(run.stages)} - {"shuffle"} == {"corpus", "samples"}


def test_a_run_folder_is_claimed_once_and_refuses_a_run_of_another_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.claim("demo", "name: demo\n")
    run.claim("demo", "name: demo\nseed: 1\n")
    assert yaml.safe_load(run.config.read_text()) == {"name": "demo", "seed": 1}
    with pytest.raises(ArtifactError, match="belongs to the run 'demo', the configuration is 'base'"):
        run.claim("base", "name: base\n")
    assert yaml.safe_load(run.config.read_text()) == {"name": "demo", "seed": 1}


def test_a_folder_with_other_things_is_not_taken_as_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds 1 files or folders such as 'thesis\.tex'"):
        RunDir(tmp_path).claim("demo", "name: demo\n")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_configuration_is_brought_up_to_date_only_as_it_was_left(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert run.write_config("seed: 1\n")
    assert run.write_config("seed: 2\n")
    edited = run.config.read_text().replace("seed: 2", "seed: 3")
    run.config.write_text(edited)
    assert not run.write_config("seed: 4\n")
    assert run.config.read_text() == edited
    (tmp_path / ".run").write_text("demo")
    with pytest.raises(ArtifactError, match=r"config\.yaml: was written or edited by somebody else.*--config"):
        run.claim("demo", "seed: 4\n")
    assert run.config.read_text() == edited


@pytest.mark.parametrize("kind", ["text", "no text", "link", "link to nowhere", "folder"])
def test_what_somebody_else_calls_config_yaml_is_left_alone(tmp_path: Path, kind: str) -> None:
    run, elsewhere = RunDir(tmp_path / "run"), tmp_path / "mine.yaml"
    run.root.mkdir()
    if kind == "text":
        run.config.write_text("seed: 1\n")
    elif kind == "no text":
        run.config.write_bytes(b"\xff\xfe\0")
    elif kind == "folder":
        run.config.mkdir()
    else:
        RunDir(tmp_path).write_config("seed: 1\n")
        (tmp_path / "config.yaml").rename(elsewhere)
        run.config.symlink_to(elsewhere if kind == "link" else "nowhere")
    before = run.config.lstat()
    assert not run.write_config("seed: 4\n")
    assert run.config.lstat() == before


def test_the_configuration_of_an_earlier_release_is_brought_up_to_date(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    (tmp_path / ".run").write_text("demo")
    run.config.write_text("name: demo\nseed: 1\n")
    run.claim("demo", "name: demo\nseed: 2\n")
    assert yaml.safe_load(run.config.read_text()) == {"name": "demo", "seed": 2}


def _fail(run: RunDir, config: str, error: KexueError, *, made: str | None = None) -> None:
    """Claim ``run``, leave the folder ``made`` in it, and fail."""
    with suppress(type(error)), run.lock():
        run.claim("demo", config)
        if made:
            (run.root / made).mkdir()
        raise error


def test_work_that_is_refused_leaves_the_folder_as_it_was_and_other_failures_do_not(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "demo")
    _fail(run, "name: demo\n", ConfigError("no such input"))
    assert not list(tmp_path.iterdir())
    _fail(run, "name: demo\n", TrainingError("the loss is NaN"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.root.iterdir()}
    assert set(before) == {run.root / ".lock", run.root / ".run", run.config}
    _fail(run, "name: demo\nseed: 1\n", ConfigError("no such input"))
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in run.root.iterdir()} == before
    _fail(run, "name: demo\nseed: 1\n", ConfigError("the next stage cannot take it"), made="shards")
    assert "seed: 1" in run.config.read_text()


def test_a_link_to_nowhere_is_named_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("nowhere")
    expected = pytest.raises(ResourceError, match=r"run: is a link to nowhere, which does not exist; .* --out$")
    with expected, RunDir(tmp_path / "run").lock("--out"):
        pass


def test_a_link_to_a_folder_is_as_good_as_the_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    with RunDir(tmp_path / "run").lock():
        assert (tmp_path / "disk" / ".lock").exists()


def test_every_path_of_a_run_lies_below_its_root(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [getattr(run, name) for name, value in vars(RunDir).items() if isinstance(value, property)]
    assert len(paths) == len(set(paths)) == 13
    assert all(path.parent == tmp_path for path in paths)
