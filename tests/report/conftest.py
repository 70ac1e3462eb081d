"""Run folders, finished and not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.example_run import write_eventful_run, write_finished_run, write_young_run


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    """A run folder in which every stage has finished, training after one restart."""
    return write_finished_run(tmp_path / "runs" / "demo")


@pytest.fixture
def young_run(tmp_path: Path) -> Path:
    """A run folder in the middle of its training."""
    return write_young_run(tmp_path / "runs" / "young")


@pytest.fixture
def eventful_run(tmp_path: Path) -> Path:
    """A finished run with Chinese predictions, two phases, everything that can go wrong, and further evaluations."""
    return write_eventful_run(tmp_path / "runs" / "eventful")
