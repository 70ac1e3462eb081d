"""The seconds of a run, from what its folder records and what its processes have used; hand-written ones here."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.demo_seconds import KINDS, Samples, kind_of, parts_of


def write_lines(path: Path, *lines: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_parts_of_a_run_fill_its_time(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "stages.jsonl",
        {"stage": "corpus", "started": 103.0, "seconds": 10.0},
        {"stage": "train", "started": 114.0, "seconds": 50.0},
        {"stage": "report", "started": 164.0, "seconds": 1.0},
    )
    write_lines(
        tmp_path / "pretrain" / "metrics.jsonl",
        {"kind": "start", "step": 0, "time": 120.0},
        {"kind": "train", "step": 4, "seconds": 30.0},
        {"kind": "validation", "step": 4},
        {"kind": "checkpoint", "step": 4, "time": 159.0, "stall_seconds": 0.1},
        {"kind": "end", "step": 4, "time": 160.0},
    )
    parts = parts_of(tmp_path, 100.0, 167.0)
    assert [part.end - part.begin for part in parts] == [3.0, 10.0, 1.0, 6.0, 40.0, 4.0, 0.0, 1.0, 2.0]
    assert all(before.end == after.begin for before, after in itertools.pairwise(parts))
    assert parts[4].note == "steps 30.0 s; 1 validations, 1 checkpoints and the rest 10.0 s"


def test_processor_time_counts_in_the_part_in_which_it_was_seen() -> None:
    samples = Samples([(1.0, "flow", 2.0), (1.5, "workers", 3.0), (2.0, "workers", 4.0)])
    assert samples.between(0.0, 2.0) == {"flow": 2.0, "workers": 3.0}
    assert samples.between(2.0, 3.0) == {"workers": 4.0}


@pytest.mark.parametrize(
    ("command_line", "kind"),
    [
        ("python -c from flows.embedded_server import serve; serve(5)", "Prefect's server"),
        ("/x/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/ray", "Ray itself"),
        ("python -u /x/site-packages/ray/dashboard/agent.py --node-ip-address=127.0.0.1", "Ray itself"),
        ("ray::RayTrainWorker.run_train_fn", "workers"),
        ("python -c from multiprocessing.spawn import spawn_main; spawn_main(tracker_fd=7)", "workers"),
    ],
)
def test_processes_are_told_apart_by_their_command_lines(command_line: str, kind: str) -> None:
    assert kind_of(command_line) == kind
    assert kind in KINDS


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_process_and_its_child_use_is_seen() -> None:
    """A child that has used three tenths of a second and waits to be looked at; the kernel counts hundredths."""
    program = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        samples = Samples()
        samples.look(os.getpid())
        child.communicate(b"\n")
    assert samples.between(0.0, float("inf"))["workers"] >= 0.25
    assert samples.last[child.pid] >= 0.25
