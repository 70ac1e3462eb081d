"""requirements.lock holds everything that pyproject.toml asks for, with hashes, and constraints.txt says the same."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.pins import constraints, read_lock

NOT_LOCKED = {"pip"}
"""Tools that an environment brings along."""


def entries(repository: Path) -> list[str]:
    """Each package of the lock with its hashes, as one text."""
    text = (repository / "requirements.lock").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return re.split(r"\n(?=\S)", "\n".join(lines))


def requirements_of(name: str) -> list[Requirement]:
    """What the installed package ``name`` needs here; nothing if it is not installed."""
    try:
        lines = distribution(name).requires or []
    except PackageNotFoundError:
        return []
    needed = map(Requirement, lines)
    return [r for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]


def test_constraints_are_the_versions_of_the_lock(repository: Path) -> None:
    assert (repository / "constraints.txt").read_text(encoding="utf-8") == constraints()


def test_every_package_of_the_lock_has_one_version_and_hashes(repository: Path) -> None:
    found = entries(repository)
    assert len(found) == len(read_lock()) > 200
    odd = [
        entry
        for entry in found
        if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry)
    ]
    assert odd == []


def test_the_lock_holds_what_its_packages_need() -> None:
    locked = read_lock()
    loose = [
        f"{name} needs {requirement}, and the lock has {locked.get(canonicalize_name(requirement.name))}"
        for name in locked
        for requirement in requirements_of(name)
        if canonicalize_name(requirement.name) not in NOT_LOCKED
        and not requirement.specifier.contains(locked.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]
    assert loose == []


def test_the_lock_names_no_host_and_no_path(repository: Path) -> None:
    assert re.findall(r"://|@ |--\w*index|^/", (repository / "requirements.lock").read_text(encoding="utf-8")) == []
