"""install.py tells from the lines of pip how far an installation is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def script(repository: Path) -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("install", repository / "install.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_pip_prints_becomes_one_state(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "pip-26.0.dist-info").mkdir()
    installation = script.Installation(tmp_path)
    states = []
    for line in (
        "Collecting numpy>=2.0 (from kexue_train==0.1.0)",
        "Using cached numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl.metadata (6.6 kB)",
        "Downloading torch-2.13.0-cp311-none-manylinux_2_28_x86_64.whl (850.1 MB)",
        "Processing /wheels/torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl (from x)",
        "Installing collected packages: numpy, torch, kexue_train",
    ):
        installation.read(line)
        states.append(installation.describe())
    (tmp_path / "numpy-2.4.6.dist-info").mkdir()
    assert [*states, installation.describe()] == [
        "looking up packages: 1",
        "looking up packages: 1",
        "fetching torch (850.1 MB)",
        "fetching torch",
        "installed 0 of 3 packages",
        "installed 1 of 3 packages",
    ]
