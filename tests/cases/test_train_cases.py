"""Every case of the part ``train`` is a script; it runs against the code of this repository and ends with code 0.

Most of what the scripts show is tested more closely, and in less time, in ``tests/train`` and ``tests/cli``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cases.table import cases_folder, read_cases
from tests.conftest import REPOSITORY
from tests.train.warm_python import warm_python

_CANNOT_RUN = 77
_LIMIT = "600"
"""Seconds; more than any of the scripts takes, also on a machine that does much else."""
_TAKE_A_LIMIT = ("unknown_hostname.sh", "pet_environment.sh", "full_disk.sh")

_SCRIPTS = {name: row["file"].split()[0] for name, row in read_cases("train").items()}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the scripts, which are read-only, and an environment in which ``kexue`` is the one of this repository.

    The first script makes the samples that all of them train on.
    """
    folder = tmp_path_factory.mktemp("train-cases")
    shutil.copytree(cases_folder("train"), folder / "train")
    (folder / "bin").mkdir()
    command = folder / "bin" / "kexue"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{REPOSITORY}" exec "{warm_python()}" -m kexue_train "$@"\n')
    command.chmod(0o755)
    path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
    return folder / "train", os.environ | {"PATH": path, "SAMPLES": str(folder / "samples")}


def test_every_case_has_its_script() -> None:
    folder = cases_folder("train")
    assert _SCRIPTS
    assert [name for name, script in _SCRIPTS.items() if not (folder / script).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize("script", [pytest.param(script, id=name) for name, script in _SCRIPTS.items()])
def test_case(script: str, shell: tuple[Path, dict[str, str]]) -> None:
    folder, environment = shell
    command = ["bash", script, *([_LIMIT] if script in _TAKE_A_LIMIT else [])]
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode == _CANNOT_RUN:
        pytest.skip(ended.stdout.strip())
    assert ended.returncode == 0, ended.stdout + ended.stderr
