"""Every case of the part ``use`` has its check, and every check passes.

The checks are in the modules of ``use_checks``: each has ``CHECKS``, id -> function of a fresh copy of the folder
``use`` of the cases, in which ``hf`` is a small exported folder. One that starts processes is marked as slow.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from kexue_train.export.export_hf import export_hf
from tests.cases.table import cases_folder, read_cases
from tests.train.conftest import samples  # noqa: F401  # a fixture
from tests.train.tiny_training import make_checkpoint

Check = Callable[[Path], None]


def _all_checks() -> dict[str, Check]:
    names = sorted(path.stem for path in Path(__file__).with_name("use_checks").glob("*.py"))
    modules = [import_module(f"tests.cases.use_checks.{name}") for name in names]
    checks = [check for module in modules for check in module.CHECKS.items()]
    assert len(dict(checks)) == len(checks)
    return dict(sorted(checks))


_CHECKS = _all_checks()


@pytest.fixture(scope="module")
def exported(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """An exported folder of random weights."""
    folder = tmp_path_factory.mktemp("exported")
    export_hf(make_checkpoint(folder, samples, step=6), folder / "hf")
    return folder / "hf"


def test_every_case_has_its_check() -> None:
    cases_folder("use")
    assert {name.partition(":")[0] for name in _CHECKS} == set(read_cases("use"))


@pytest.mark.parametrize(
    "check", [pytest.param(check, id=name, marks=getattr(check, "pytestmark", [])) for name, check in _CHECKS.items()]
)
def test_case(check: Check, exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "use"
    shutil.copytree(cases_folder("use"), copy)
    for path in [copy, *copy.rglob("*")]:  # the original is read-only
        path.chmod(path.stat().st_mode | 0o200)
    shutil.copytree(exported, copy / "hf")
    check(copy)
