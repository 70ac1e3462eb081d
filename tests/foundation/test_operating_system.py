"""What only Linux has is asked for in one file, which does without it; Windows is refused by name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kexue_train.foundation import operating_system
from kexue_train.train.config import TrainConfig

HOME = "foundation/operating_system.py"
ONLY_THERE = re.compile(
    r"\bimport (?:fcntl|resource)\b|\bprctl\b|sched_[gs]etaffinity|pidfd|epoll|fallocate|fadvise|"
    r"preadv|memfd|\bO_(?:DIRECT|TMPFILE)\b|sys\.platform|os\.uname|Path\(\"/(?:proc|sys)/"
)
ELSEWHERE = {"__init__.py": {"sys.platform"}, "cli/doctor.py": {'Path("/proc/'}}
"""The refusal of Windows; whether the driver of NVIDIA is there."""


def test_one_file_asks_for_what_only_linux_has(repository: Path) -> None:
    package = repository / "kexue_train"
    found = {
        str(path.relative_to(package)): set(ONLY_THERE.findall(path.read_text(encoding="utf-8")))
        for path in package.rglob("*.py")
    }
    assert len(found.pop(HOME)) >= 6
    assert {name: names for name, names in found.items() if names} == ELSEWHERE


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without what Linux has."""
    monkeypatch.setattr(operating_system.sys, "platform", "darwin")
    monkeypatch.setattr(operating_system, "_c_function", lambda _: None)
    monkeypatch.setattr(operating_system, "read_system_file", lambda _: "")
    for name in ("sched_getaffinity", "preadv"):
        monkeypatch.delattr(operating_system.os, name)


def test_elsewhere_the_same_is_done_by_other_means(elsewhere: None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    first, second = bytearray(10), bytearray(5)
    with path.open("r+b") as file:
        assert operating_system.read_at(file.fileno(), [memoryview(first), memoryview(second)], 90) == 10
        assert operating_system.read_at(file.fileno(), [memoryview(second)], 100) == 0
        assert file.tell() == 0
        operating_system.free_range(file.fileno(), 0, 50)
        operating_system.write_out(file.fileno(), 0, 50)
    assert bytes(first) == bytes(range(90, 100))
    assert path.read_bytes() == bytes(range(100))
    assert operating_system.usable_cpus() == os.cpu_count()
    assert operating_system.boot_id() == ""
    assert operating_system.peak_memory_bytes() == 0


WORKER = """
import os, sys, time
sys.platform = "darwin"
from kexue_train.foundation.operating_system import end_with_parent
end_with_parent()
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {WORKER!r}])
time.sleep(600)
"""


@pytest.mark.slow
def test_elsewhere_too_a_worker_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        worker = psutil.Process(int(parent.stdout.readline()))
        assert worker.is_running()
        parent.kill()
        deadline = time.monotonic() + 60
        while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.05)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE


def test_windows_is_refused_at_once_with_what_to_do_instead() -> None:
    code = "import sys; sys.platform = 'win32'; import kexue_train.cli.app"
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "does not run on Windows itself" in refused.stderr
    assert "wsl --install" in refused.stderr


def test_apples_gpus_are_refused_with_what_to_take() -> None:
    with pytest.raises(ValueError, match=r"device=mps: training runs on CPUs and CUDA devices; on a Mac take cpu"):
        TrainConfig.model_validate({"steps": 1, "device": "mps"})
