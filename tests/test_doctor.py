"""What `kexue doctor` finds, on machines made up for the test."""

import importlib.metadata
from collections import namedtuple
from pathlib import Path

import pytest

from kexue_train import doctor

_Usage = namedtuple("_Usage", "total used free")


def _find(name: str, run_dir: Path) -> doctor.Check:
    return next(check for check in doctor.diagnose(run_dir=run_dir) if check.name == name)


def test_every_finding_that_is_not_ok_says_how_to_fix_it(tmp_path):
    assert all(check.fix for check in doctor.diagnose(run_dir=tmp_path) if check.status != "ok")


def test_a_full_disk_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: _Usage(10**9, 10**9, 5 * 10**6))
    check = _find("disk", tmp_path / "not" / "there")
    assert check.status == "failure"
    assert "5 MB free" in check.finding


def test_little_memory_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "available_memory_bytes", lambda: 10**8)
    assert _find("memory", tmp_path).status == "failure"


def test_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(doctor._PACKAGES, "report", ("plotly", "surely_not_installed"))
    check = _find("[report]", tmp_path)
    assert (check.status, check.finding) == ("failure", "missing: surely_not_installed")
    assert check.fix == "pip install 'kexue_train[report]'"


@pytest.mark.parametrize(
    ("versions", "status"),
    [
        ({"fastapi": "0.150.2", "sqlalchemy": "2.0.58"}, "ok"),
        ({"fastapi": "0.151.0", "sqlalchemy": "2.0.58"}, "failure"),
        ({"fastapi": "0.150.0", "sqlalchemy": "2.1.0"}, "failure"),
    ],
)
def test_versions_that_break_the_prefect_server_are_found(tmp_path, monkeypatch, versions, status):
    real = importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: versions.get(name) or real(name))
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setitem(doctor._PACKAGES, "report", ())
    assert doctor._prefect_companions().status == status


def test_a_folder_that_cannot_be_written_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert _find("run folder", tmp_path).status == "failure"
