"""Every case of the part ``optimizer``: its scripts end with code 0, those of several ranks under torchrun."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.cases.table import cases_folder, read_cases
from tests.train.warm_python import warm_python

_SCRIPTS = [name for cells in read_cases("optimizer").values() for name in re.findall(r"\w+\.py", cells["file"])]
_OF_RANKS = [name for name in _SCRIPTS if name.startswith(("two_losses", "shared_layer", "heads_differ"))]


def test_every_script_belongs_to_a_case() -> None:
    assert {path.name for path in cases_folder("optimizer").glob("*.py")} == set(_SCRIPTS)


@pytest.mark.parametrize("name", [name for name in _SCRIPTS if name not in _OF_RANKS])
def test_script(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cases_folder("optimizer") / name
    monkeypatch.setattr(sys, "argv", [str(path)])
    with warnings.catch_warnings(action="default"), pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert not end.value.code


@pytest.mark.slow
@pytest.mark.parametrize("name", _OF_RANKS)
def test_script_on_two_ranks(name: str, repository: Path, tmp_path: Path) -> None:
    path = cases_folder("optimizer") / name
    command = [warm_python(), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(repository), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
