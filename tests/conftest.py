"""What tests of several folders share: an offline, single-threaded environment and the fixtures below; nothing else."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from kexue_train.executor import RayExecutor

REPOSITORY = Path(__file__).resolve().parent.parent

# Before anything heavy is imported; processes that tests start (Ray's workers too) inherit it.
os.environ |= {
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    # Modelling code of exported folders is copied here, not into the user's cache; one per test process.
    "HF_MODULES_CACHE": tempfile.mkdtemp(prefix="kexue-modules-"),
    "OMP_NUM_THREADS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.pop("RAY_ADDRESS", None)
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)

# A shell that starts the tests in the background makes them, and all that they start, deaf to Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run and on every machine, without a limit of time, for slow and busy machines.
settings.register_profile("repeatable", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real texts and evaluation sets beside the repository; the test is skipped where they are not."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets in {folder.relative_to(REPOSITORY.parent)} beside the repository")
    return folder


@pytest.fixture(scope="session")
def local_ray() -> Iterator[RayExecutor]:
    """A Ray cluster of two CPUs on this machine, shared by the tests of one process."""
    pytest.importorskip("ray")
    import ray

    from kexue_train.executor import RayExecutor

    yield RayExecutor(num_cpus=2)
    ray.shutdown()
