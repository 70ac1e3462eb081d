"""What visitors of the repository are offered holds together with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from kexue_train import __version__
from kexue_train.cli.app import TREE


def test_the_citation_is_of_this_version(repository: Path) -> None:
    citation = yaml.safe_load((repository / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


@pytest.mark.parametrize("name", ["bug.md", "idea.md"])
def test_forms_of_issues_have_what_they_need(repository: Path, name: str) -> None:
    text = (repository / ".github" / "ISSUE_TEMPLATE" / name).read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert {"name", "about"} == front.keys()
    commands = {name for names in TREE.values() for name in names}
    assert set(re.findall(r"`kexue ([\w-]+)", text)) <= commands
