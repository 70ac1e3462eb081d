"""Reads the tables of the cases, which lie beside the repository."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

CASES = REPOSITORY.parent / "shared" / "data" / "cases"


def read_cases(part: str) -> dict[str, dict[str, str]]:
    """Return id -> cells by the name of their column of every row of ``part``, such as ``data``; none without tables.

    An id such as ``U07–U10`` stands for a row of several cases and is kept as it is.
    """
    path = CASES / "CASES.md"
    if not path.is_file():
        return {}
    section = re.search(rf"^## {part}/.*?(?=^## |\Z)", path.read_text(encoding="utf-8"), re.M | re.S)
    assert section, f"{path}: has no section '{part}/'"
    rows = [_cells(line) for line in section[0].splitlines() if line.startswith("|")]
    header, cases = rows[0], rows[2:]
    return {cells[0]: dict(zip(header, cells, strict=True)) for cells in cases}


def cases_folder(part: str) -> Path:
    """Return the folder of the files of ``part``; the test is skipped where it is missing."""
    folder = CASES / part
    if not folder.is_dir():
        pytest.skip(f"needs the cases in {folder.relative_to(REPOSITORY.parent)} beside the repository")
    return folder


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]
