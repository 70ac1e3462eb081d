"""Tiny samples, and one finished training that tests only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from kexue_train.train.faults.stop import Ending
from tests.train.tiny_training import make_config, train_here, write_samples


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 32 tokens, a few of them held out."""
    return write_samples(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Path:
    """The folder of an uninterrupted training of ``make_config()``: 8 steps, checkpoints every 2."""
    out = tmp_path_factory.mktemp("trained") / "pretrain"
    assert train_here(make_config(), samples, out) is Ending.FINISHED
    return out
