"""Each example of docs/changing.md is applied to a copy of the code; its commands then work, and did not before."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "changing.md"
# The most files that a change of each kind may touch, its tests and documents not counted.
MOST_FILES = {
    "input format": 2,
    "filter": 2,
    "schedule": 1,
    "metric": 2,
    "launcher": 3,
    "head": 5,
    "stage": 4,
    "evaluation": 4,
}


class Change(NamedTuple):
    """One section of the page."""

    kind: str
    files: list[str]
    tests: list[str]
    """Arguments of pytest."""
    patch: str
    commands: str

    @property
    def patched(self) -> list[str]:
        """The files that the example changes or adds, by path in the repository."""
        return re.findall(r"^\+\+\+ b/(\S+)$", self.patch, re.M)


def read_page() -> list[Change]:
    found = []
    for kind, body in re.findall(r"^## An? (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.M | re.S):
        listed = re.search(r"^Files: (.+?)\n\n", body, re.M | re.S)
        tests = re.search(r"^Tests: `python -m pytest ([^`]+)`", body, re.M)
        patch, commands = (re.search(rf"^```{kind_of}\n(.+?)^```", body, re.M | re.S) for kind_of in ("diff", "sh"))
        assert listed, f"{kind}: no line 'Files: ...'"
        assert tests, f"{kind}: no line 'Tests: `python -m pytest ...`'"
        found.append(
            Change(
                kind,
                re.findall(r"`([\w./]+\.py)`", listed[1]),
                tests[1].split(),
                patch[1] if patch else "",
                commands[1] if commands else "",
            )
        )
    return found


CHANGES = read_page()
EXAMPLES = [change for change in CHANGES if change.patch]


def test_every_kind_of_change_has_its_section() -> None:
    assert [change.kind for change in CHANGES] == list(MOST_FILES)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.kind)
def test_the_files_and_tests_of_a_change_exist_and_are_few(change: Change) -> None:
    new = set(re.findall(r"^--- /dev/null\n\+\+\+ b/(\S+)$", change.patch, re.M))
    missing = [name for name in change.files if not (ROOT / name).is_file() and name not in new]
    assert missing == []
    assert 1 <= len(change.files) <= MOST_FILES[change.kind]
    assert set(change.patched) <= set(change.files)
    for test in change.tests:
        path, _, name = test.partition("::")
        assert (ROOT / path).exists(), path
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8") if name else True


@pytest.mark.slow
@pytest.mark.parametrize("change", EXAMPLES, ids=lambda change: change.kind)
def test_an_example_works_once_it_is_applied_and_not_before(change: Change, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("kexue_train", "flows", "configs"):
        shutil.copytree(ROOT / name, copy / name)
    before = run_commands(change, copy, tmp_path / "before")
    patch = tmp_path / "change.diff"
    patch.write_text(change.patch, encoding="utf-8")
    applied = subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(patch)], cwd=copy, capture_output=True, text=True, check=False
    )
    assert applied.returncode == 0, f"{change.kind}: the example no longer fits the code: {applied.stderr}"
    after = run_commands(change, copy, tmp_path / "after")
    assert after.returncode == 0, after.stdout + after.stderr
    assert before.returncode != 0, before.stdout + before.stderr


def run_commands(change: Change, code: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the section's commands in an empty folder with the code in ``code``; ``kexue`` is its command."""
    folder.mkdir()
    script = (
        f'set -eu\nkexue() {{ "{sys.executable}" -m kexue_train "$@"; }}\npython() {{ "{sys.executable}" "$@"; }}\n'
    )
    return subprocess.run(
        ["bash", "-c", script + change.commands],
        cwd=folder,
        env=os_environment(code),
        capture_output=True,
        text=True,
        check=False,
    )


def os_environment(code: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(code)}
