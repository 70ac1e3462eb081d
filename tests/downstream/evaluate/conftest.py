"""Hand-made inputs, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.downstream.evaluate.tiny_artifacts import export_model, make_packs, tiny_model, write_samples


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve held-out rows and twenty for training."""
    return write_samples(tmp_path_factory.mktemp("data") / "samples", make_packs(32))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, exported."""
    return export_model(tiny_model(), tmp_path_factory.mktemp("run") / "hf")
