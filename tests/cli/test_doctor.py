"""The doctor: each fact that would spoil a run is found and comes with what to do."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from kexue_train.cli import doctor
from kexue_train.cli.doctor import Check, diagnose

FLOWS = Requirement("fastapi<0.151,>=0.139")
GB = 10**9


@pytest.fixture
def fact(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """Replace one thing the doctor asks: ``fact("platform.system", "Darwin")``, for the doctor alone."""

    def replace(name: str, value: Any) -> None:
        answer = value if callable(value) else lambda *_: value
        *modules, last = name.split(".")
        for depth in range(len(modules), 0, -1):
            real = attrgetter(".".join(modules[:depth]))(doctor)
            answer, last = SimpleNamespace(**{**vars(real), last: answer}), modules[depth - 1]
        monkeypatch.setattr(doctor, last, answer)

    return replace


def test_this_machine_gets_one_answer_per_question_and_every_complaint_a_fix(tmp_path: Path) -> None:
    checks = diagnose(run_dir=tmp_path / "runs" / "demo")
    names = [check.name for check in checks]
    assert len(names) == len(set(names)) >= 12
    assert all(check.finding for check in checks)
    assert all(bool(check.fix) == (check.status != "ok") for check in checks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("free", "status"), [(GB, "failure"), (2 * GB, "warning"), (16 * GB, "ok")], ids=["1GB", "2GB", "16GB"]
)
def test_memory_is_judged_by_what_the_demo_needs(fact: Callable[[str, Any], None], free: int, status: str) -> None:
    fact("available_memory_bytes", free)
    assert doctor._check_memory().status == status


@pytest.mark.parametrize(
    ("free", "status"), [(GB // 2, "failure"), (2 * GB, "warning"), (50 * GB, "ok")], ids=["0.5GB", "2GB", "50GB"]
)
def test_disk_is_judged_where_the_run_would_write(
    fact: Callable[[str, Any], None], tmp_path: Path, free: int, status: str
) -> None:
    asked = []
    fact("shutil.disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=free))
    assert doctor._check_disk(tmp_path / "not" / "yet").status == status
    assert asked == [tmp_path]


def test_small_shared_memory_is_told_with_the_container_option(fact: Callable[[str, Any], None]) -> None:
    fact("shutil.disk_usage", SimpleNamespace(total=64 * 2**20))
    check = doctor._check_shared_memory(Path("/"))
    assert (check.status, "--shm-size" in check.fix) == ("warning", True)
    assert doctor._check_shared_memory(Path("/no/such/folder")).status == "warning"


def test_another_system_and_a_single_cpu_are_warnings(fact: Callable[[str, Any], None]) -> None:
    fact("platform.system", "Darwin")
    fact("available_cpus", 1)
    assert doctor._check_system().status == doctor._check_cpus().status == "warning"


def test_a_run_folder_below_a_file_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is a file" in doctor._check_run_folder(tmp_path / "file" / "run").finding
    assert doctor._check_run_folder(tmp_path / "new" / "run").status == "ok"


def test_a_run_folder_without_write_permission_is_a_failure(fact: Callable[[str, Any], None], tmp_path: Path) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    fact("tempfile.TemporaryFile", refuse)
    check = doctor._check_run_folder(tmp_path)
    assert (check.status, "Permission denied" in check.finding) == ("failure", True)


@pytest.mark.parametrize(
    ("limits", "status"), [((256, 4096), "warning"), ((256, 512), "warning"), ((-1, -1), "ok"), ((65536, -1), "ok")]
)
def test_the_limit_of_open_files_is_judged(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], status: str
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: limits)
    assert doctor._check_open_files().status == status


def test_a_dead_loopback_device_is_a_failure(fact: Callable[[str, Any], None]) -> None:
    def dead(address: tuple[str, int]) -> socket.socket:
        raise OSError(99, "Cannot assign requested address")

    fact("socket.create_server", dead)
    assert doctor._check_loopback().status == "failure"


def test_a_clock_before_the_program_was_written_is_a_warning(fact: Callable[[str, Any], None]) -> None:
    fact("time.time", 86400.0)
    assert doctor._check_clock().status == "warning"


def check_flows(fact: Callable[[str, Any], None], found: str | None) -> Check:
    def version(name: str) -> str:
        if found is None:
            raise PackageNotFoundError(name)
        return found

    fact("version", version)
    return doctor._check_group("packages: flows", [FLOWS], "the command", "warning")


def test_a_version_known_to_break_is_a_failure_that_says_why(fact: Callable[[str, Any], None]) -> None:
    check = check_flows(fact, "0.165.0")
    assert check.status == "failure"
    assert check.finding == "unfit: fastapi 0.165.0 (needs <0.151,>=0.139: others break Prefect's server)"
    assert check.fix == "the command"


def test_a_missing_or_fitting_package_is_told(fact: Callable[[str, Any], None]) -> None:
    assert check_flows(fact, None) == Check("packages: flows", "warning", "not installed: fastapi", "the command")
    assert check_flows(fact, "0.150.0") == Check("packages: flows", "ok", "fastapi 0.150.0")


class About:
    def get_all(self, _: str) -> list[str]:
        return ["numpy>=2", 'torch>=2.6; extra == "train"', 'torch>=2.6; extra == "all"', 'ray>=2; extra == "cluster"']


def test_each_extra_is_judged_by_its_own_packages(fact: Callable[[str, Any], None]) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    fact("metadata", About())
    fact("version", missing)
    checks = {check.name: check for check in doctor._check_packages()}
    assert (checks["packages"].status, checks["packages"].finding) == ("failure", "not installed: numpy")
    assert (checks["packages: train"].status, checks["packages: train"].finding) == ("failure", "not installed: torch")
    assert checks["packages: cluster"].status == "warning"
    assert ".[cluster]" in checks["packages: cluster"].fix


def test_a_torch_that_cannot_be_loaded_is_a_failure(
    fact: Callable[[str, Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fact("importlib.util.find_spec", object())
    monkeypatch.setitem(sys.modules, "torch", None)
    assert [(check.name, check.status) for check in doctor._check_torch()] == [("torch", "failure")]


def test_a_machine_without_torch_is_not_asked_about_gpus(fact: Callable[[str, Any], None]) -> None:
    fact("importlib.util.find_spec", lambda _: None)
    assert list(doctor._check_torch()) == []


@pytest.mark.parametrize(
    ("gpu", "compiler", "status"), [(True, None, "warning"), (True, "/usr/bin/gcc", "ok"), (False, None, "ok")]
)
def test_a_gpu_needs_a_c_compiler_for_the_kernels_of_the_optimizer(
    fact: Callable[[str, Any], None], tmp_path: Path, gpu: bool, compiler: str | None, status: str
) -> None:
    (tmp_path / "Python.h").touch()
    fact("_has_gpu", gpu)
    fact("shutil.which", compiler)
    fact("sysconfig.get_path", str(tmp_path))
    check = doctor._check_compiler()
    assert check.status == status
    assert ("gcc" in check.fix) is (status == "warning")


def test_a_gpu_needs_the_headers_of_python(fact: Callable[[str, Any], None], tmp_path: Path) -> None:
    fact("_has_gpu", True)
    fact("shutil.which", "/usr/bin/gcc")
    fact("sysconfig.get_path", str(tmp_path))
    assert doctor._check_compiler().status == "warning"
