"""The run folder: one process at a time, one run per folder, a log of stages that survives torn lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kexue_train.foundation.errors import ArtifactError, ConfigError, ResourceError
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
    assert run.config.read_text() == "name: demo\nseed: 1\n"
    with pytest.raises(ArtifactError, match="belongs to the run 'demo', the configuration is 'base'"):
        run.claim("base", "name: base\n")
    assert run.config.read_text() == "name: demo\nseed: 1\n"


def test_a_folder_with_other_things_is_not_taken_as_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds 1 files or folders such as 'thesis\.tex'"):
        RunDir(tmp_path).claim("demo", "name: demo\n")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_every_path_of_a_run_lies_below_its_root(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    paths = [getattr(run, name) for name, value in vars(RunDir).items() if isinstance(value, property)]
    assert len(paths) == len(set(paths)) == 11
    assert all(path.parent == tmp_path for path in paths)
