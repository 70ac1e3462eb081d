"""What badges and classifiers say of Python and the licence is what pyproject.toml and the docs say."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def shown(repository: Path, badge: str) -> list[str]:
    svg = (repository / "docs" / "badges" / f"{badge}.svg").read_text(encoding="utf-8")
    return re.findall(r">([^<>]+)</text>", svg)


def test_classifiers_badge_and_table_name_the_same_versions_of_python(
    repository: Path, project: dict[str, Any]
) -> None:
    prefix = "Programming Language :: Python :: "
    versions = [name.removeprefix(prefix) for name in project["classifiers"] if re.fullmatch(rf"{prefix}3\.\d+", name)]
    docs = (repository / "docs" / "dependencies.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (3\.\d+) \| (\w+)", docs, re.MULTILINE)
    assert shown(repository, "python") == ["Python", " | ".join(versions)]
    assert [version for version, word in table if word == "tested"] == versions
    assert f">={versions[0]}" == project["requires-python"]


def test_the_licence_is_that_of_the_project(repository: Path, project: dict[str, Any]) -> None:
    assert shown(repository, "licence") == ["Licence", project["license"]]
    assert "Apache License" in (repository / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_shows_them_as_files_of_its_own(repository: Path, name: str) -> None:
    images = re.findall(r"!\[[^\]]+\]\((docs/badges/[^)]+)\)", (repository / name).read_text(encoding="utf-8"))
    assert images == ["docs/badges/python.svg", "docs/badges/licence.svg"]
