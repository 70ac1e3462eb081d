"""What all tests share: an offline, single-threaded environment, their order, a guard of the process, and fixtures."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.process_state import differences, process_state

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
    "RAY_worker_niceness": "0",  # Ray's own 15 lets its workers starve beside other tests
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


# Their tests take minutes together, the longest first; see the list that `make test` ends with.
_LONGEST_FILES = (
    "test_deployments.py", "test_ray_nodes.py", "test_ray_job.py", "test_train_cases.py", "test_faults.py",
    "test_pipeline.py", "test_pretrain_flow.py", "test_ray_launch.py", "test_zero.py", "test_benchmark_optimizer.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, then those with slow tests, so that no worker has a long one left at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    ranks = {name: rank for rank, name in enumerate(_LONGEST_FILES)}
    items.sort(key=lambda item: (ranks.get(item.path.name, len(ranks)), item.path not in slow))


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, sched: Any) -> None:
    """Go on after the test in which a test process died.

    xdist 3.8 runs that test again, which may end the next process, and hands out the process's finished files again,
    for which it then waits for ever.
    """
    for file, tests in list(sched.workqueue.items()):
        if crashitem in tests:
            tests[crashitem] = True
        if all(tests.values()):
            del sched.workqueue[file]


@pytest.fixture(autouse=True)
def _process_is_left_as_it_was() -> Iterator[None]:
    """Fail a test that changes the process for those after it; monkeypatch and the like undo their changes before."""
    before = process_state()
    yield
    changed = differences(before, process_state())
    assert not changed, "this test leaves the process changed for the tests after it:\n" + "\n".join(changed)


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
