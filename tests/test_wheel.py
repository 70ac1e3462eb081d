"""The wheel works alone: every file is in it, and its commands run in an empty folder outside the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel, made of this tree, was unpacked in."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    tree = folder / "tree"  # a copy, since setuptools leaves its work in it
    tree.mkdir()
    names = ("pyproject.toml", "README.md", "LICENSE", "kexue_train", "configs", "flows")
    subprocess.run(["cp", "-a", *names, tree], cwd=repository, check=True)
    subprocess.run([*command, "--wheel-dir", str(folder), str(tree)], check=True)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture
def python(installed: Path, tmp_path: Path):
    """Runs ``python *words`` in an empty folder, with the packages of the wheel."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(installed)}
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_every_file_is_in_it(installed: Path, repository: Path) -> None:
    for package in ("kexue_train", "flows"):
        files = [path for path in (repository / package).rglob("*.*") if "__pycache__" not in path.parts]
        missing = [path for path in files if not (installed / path.relative_to(repository)).exists()]
        assert missing == []
        assert len(files) > 10
    configs = {path.name for path in (repository / "configs").iterdir()}
    assert {path.name for path in (installed / "kexue_train" / "configs").iterdir()} == configs


def test_a_shipped_configuration_is_known_by_its_name(python, installed: Path, tmp_path: Path) -> None:
    assert python("-c", "import kexue_train; print(kexue_train.__file__)").stdout.startswith(str(installed))
    planned = python("-m", "kexue_train", "plan", "--config", "demo")
    assert planned.returncode == 0, planned.stderr
    assert "2,937,600 weights" in planned.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused_with_the_nearest(python) -> None:
    refused = python("-m", "kexue_train", "plan", "--config", "demmo")
    assert refused.returncode == 2
    assert "demmo: no such configuration file" in refused.stderr
    assert "did you mean demo?" in refused.stderr


def test_the_flows_are_there(python) -> None:
    helped = python("-m", "flows.pretrain_pipeline", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "flows.pretrain_pipeline" in helped.stdout
    refused = python("-m", "flows.pretrain_pipeline", "demmo")
    assert refused.returncode == 2
    assert "did you mean demo?" in refused.stderr
