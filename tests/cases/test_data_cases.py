"""Every case of the part ``data`` has its check, and every check passes.

The checks are in the modules of ``data_checks``: each has ``CHECKS``, id -> function of a fresh copy of the folder
``data`` of the cases, which raises if the case is not right. An id may have several with a word each: ``D20: kana``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from tests.cases.table import cases_folder, read_cases

Check = Callable[[Path], None]


def _all_checks() -> list[tuple[str, Check]]:
    names = sorted(path.stem for path in Path(__file__).with_name("data_checks").glob("*.py"))
    modules = [import_module(f"tests.cases.data_checks.{name}") for name in names]
    return sorted(check for module in modules for check in module.CHECKS.items())


_CHECKS = _all_checks()


def test_every_case_has_its_check() -> None:
    cases_folder("data")
    names = [name for name, _ in _CHECKS]
    assert len(set(names)) == len(names)
    assert {name.partition(":")[0] for name in names} == set(read_cases("data"))


@pytest.mark.parametrize(("name", "check"), [pytest.param(*entry, id=entry[0]) for entry in _CHECKS])
def test_case(name: str, check: Check, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(cases_folder("data"), copy)
    for path in [copy, *copy.rglob("*")]:  # the original is read-only
        path.chmod(path.stat().st_mode | 0o200)
    check(copy)
