"""Tiny samples, and one finished training that tests only read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.train.tiny_training import make_config, train_here, write_samples


@pytest.fixture(scope="module", autouse=True)
def own_modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Modelling code of model folders is copied here, not into the user's cache; other tests keep theirs."""
    import transformers.dynamic_module_utils as dynamic

    def forget() -> None:  # a package imported from one cache does not look into another
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]

    own, before = str(tmp_path_factory.mktemp("hf_modules")), dynamic.HF_MODULES_CACHE
    dynamic.HF_MODULES_CACHE = own
    sys.path.insert(0, own)  # transformers would append it, after the caches of other tests
    forget()
    yield
    dynamic.HF_MODULES_CACHE = before
    sys.path.remove(own)
    forget()


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 32 tokens, a few of them held out."""
    return write_samples(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Path:
    """The folder of an uninterrupted training of ``make_config()``: 8 steps, checkpoints every 2."""
    out = tmp_path_factory.mktemp("trained") / "pretrain"
    assert train_here(make_config(), samples, out)
    return out
