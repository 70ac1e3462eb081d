"""Tiny samples, tasks and rows that tests only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.supervised.tiny_tasks import prepare, section, write_tasks
from tests.train.tiny_training import write_samples

MIX = {"mlm": 6, "sorted": 3, "marked": 2, "asked": 2, "chosen": 1}


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 32 tokens, a few of them held out."""
    return write_samples(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tasks' files."""
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def mix(tmp_path_factory: pytest.TempPathFactory, samples: Path, tasks: Path) -> Path:
    """The mix of all tasks and masked words, as training reads it."""
    return prepare(section(tasks, MIX), samples, tmp_path_factory.mktemp("mix"))
