"""The fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.conftest import samples  # noqa: F401  # a fixture
from tests.train.tiny_training import make_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Path:  # noqa: F811
    """A checkpoint of random weights."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints"), samples, step=6)
