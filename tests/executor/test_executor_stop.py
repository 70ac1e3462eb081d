"""A map that is stopped in the middle of long tasks leaves no worker behind, however it is stopped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from kexue_train.executor import LocalExecutor
from tests.executor.test_executor import PROMPTLY, SECONDS, is_alive, touch_and_sleep, wait_until

SCRIPT = """
import signal, sys, time
from pathlib import Path
from kexue_train.executor import LocalExecutor, RayExecutor
from tests.executor.test_executor import touch_and_sleep

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where the tests run in the background
    executor = LocalExecutor(2) if sys.argv[1] == "local" else RayExecutor(num_cpus=2)
    folder = Path(sys.argv[2])
    for _ in executor.map_unordered(touch_and_sleep, [folder / name for name in sys.argv[3:]]):
        (folder / "in the loop").touch()
        time.sleep(120)
"""
Start = Callable[..., tuple[subprocess.Popen[bytes], list[psutil.Process]]]


@pytest.fixture
def start(tmp_path: Path, repository: Path) -> Iterator[Start]:
    """Starts a process that maps over file names; returns it and its workers when the last file is there."""
    started: list[subprocess.Popen[bytes] | psutil.Process] = []

    def start(
        kind: str, *names: str, wait_for: tuple[str, ...]
    ) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
        (tmp_path / "main.py").write_text(SCRIPT)
        command = [sys.executable, str(tmp_path / "main.py"), kind, str(tmp_path), *names]
        parent = subprocess.Popen(command, cwd=repository, stderr=subprocess.DEVNULL)
        started.append(parent)
        wait_until(lambda: all((tmp_path / name).exists() for name in wait_for))
        children = psutil.Process(parent.pid).children(recursive=True)
        started.extend(children)
        return parent, children

    yield start
    for process in started:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        if isinstance(process, subprocess.Popen):
            process.wait()


def seconds_to_end(parent: subprocess.Popen[bytes], children: list[psutil.Process], number: signal.Signals) -> float:
    began = time.monotonic()
    parent.send_signal(number)
    parent.wait(timeout=SECONDS)
    wait_until(lambda: not any(is_alive(child.pid) for child in children))
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_local_workers_end_with_their_parent_in_the_middle_of_a_task(start: Start, number: signal.Signals) -> None:
    parent, children = start("local", "a", "b", "c", wait_for=("a", "b"))
    assert len(children) >= 2
    assert seconds_to_end(parent, children, number) < PROMPTLY


@pytest.mark.slow
def test_ctrl_c_in_the_loop_over_the_results_ends_the_workers_too(start: Start) -> None:
    """The traceback then keeps the generator, and so the workers, alive till the interpreter ends."""
    parent, children = start("local", "short", "b", "c", wait_for=("in the loop", "b"))
    assert seconds_to_end(parent, children, signal.SIGINT) < PROMPTLY


@pytest.mark.slow
@pytest.mark.parametrize(("names", "wait_for"), [("abc", ("a", "b")), (("short", "b", "c"), ("in the loop", "b"))])
def test_ctrl_c_ends_a_local_ray_cluster_and_its_tasks(
    start: Start, names: Sequence[str], wait_for: tuple[str, ...]
) -> None:
    pytest.importorskip("ray")
    parent, children = start("ray", *names, wait_for=wait_for)
    assert len(children) > 2
    assert seconds_to_end(parent, children, signal.SIGINT) < PROMPTLY


@pytest.mark.slow
def test_closing_the_generator_kills_local_tasks_at_once(tmp_path: Path) -> None:
    results = LocalExecutor(2).map_unordered(touch_and_sleep, [tmp_path / "short", tmp_path / "b", tmp_path / "c"])
    next(results)
    wait_until((tmp_path / "b").exists)
    began = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < PROMPTLY
    assert [
        child for child in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(child.cmdline())
    ] == []
