"""From a growing file of metrics to what a person is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kexue_train.metrics.file import MetricTail
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor.loggers import MetricLogger
from kexue_train.train.monitor.watch import Watcher, describe, watched


class Told:
    def __init__(self) -> None:
        self.updates: list[tuple[float, dict]] = []
        self.notes: list[str] = []

    def update(self, done, total, unit, **facts) -> None:
        assert (total, unit) == (100, "steps")
        self.updates.append((done, facts))

    def note(self, message: str) -> None:
        self.notes.append(message)


def _steps(records: list[dict]) -> list[int]:
    return [record["step"] for record in records]


def test_a_tail_gives_every_line_once_as_soon_as_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n')
    tail, whole = MetricTail(path), b'{"kind": "train", "step": 2}\n{"kind": "train", "step": 3}\n'
    found = []
    with path.open("ab", buffering=0) as file:
        for byte in whole:
            found += tail.read()
            file.write(bytes([byte]))
    found += tail.read()
    assert _steps(found) == [2, 3]  # not what was there before
    assert tail.read() == []
    tail.close()


def test_a_tail_reads_a_file_that_takes_the_place_from_its_beginning(tmp_path):
    paths = TrainDir(tmp_path)
    tail = MetricTail(paths.metrics)  # there is none yet
    assert tail.read() == []
    with MetricLogger(paths, resumed_step=0) as metrics:
        for step in range(1, 6):
            metrics.write("train", step, loss=1.0)
        assert _steps(tail.read()) == [1, 2, 3, 4, 5]
        metrics.write("train", 6, loss=1.0)
    with MetricLogger(paths, resumed_step=4) as metrics:
        metrics.write("train", 5, loss=1.0)
        assert _steps(tail.read()) == [6, 1, 2, 3, 4, 5]
    tail.close()


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_tail_loses_no_line_whenever_it_looks(tmp_path, cut):
    paths, tail, found = TrainDir(tmp_path), MetricTail(tmp_path / "metrics.jsonl"), []
    for start in (0, 3, 5):
        with MetricLogger(paths, resumed_step=start) as metrics:
            for step in range(start + 1, start + 4):
                metrics.write("train", step, loss=float(step))
                if step % cut == 0:
                    found += tail.read()
    found += tail.read()
    assert set(_steps(found)) == set(range(1, 9))
    tail.close()


def test_a_person_is_told_the_state_after_the_last_line_and_what_happened_once():
    told = Told()
    watcher = Watcher(5, 100, told)
    train = {"kind": "train", "step": 10, "loss": 5.0, "mfu": 0.3, "eta_seconds": 60.0, "rows": 80, "lr": 1e-3}
    validation = {"kind": "validation", "step": 10, "mlm_loss": 4.25, "mlm_accuracy": 0.25, "nsp_accuracy": 0.5}
    warning = {"kind": "warning", "step": 10, "symptom": "memory", "message": "97% of the memory is taken"}
    watcher.tell([{**warning, "step": 4}, {**validation, "step": 5}])  # of the time before
    watcher.tell([{"kind": "resume", "step": 5}, {**train, "step": 9}, train, validation, warning])
    watcher.tell([])
    assert told.updates == [(10, {"loss": 5.0, "mfu": 0.3, "eta_seconds": 60.0, "lr": 1e-3})]
    assert told.notes == [
        "step 10: validation: MLM loss 4.250, accuracy 25.0%, NSP accuracy 50.0%",
        "step 10: 97% of the memory is taken",
    ]
    watcher.tell([{"kind": "resume", "step": 5}, train, validation, warning])  # after a fault
    assert told.notes[2:] == ["step 5: the workers were started again from its checkpoint"]
    assert _steps([{"step": done} for done, _ in told.updates]) == [10, 10]


def test_only_what_a_person_should_read_is_said():
    assert describe({"kind": "train", "step": 1}) is None
    assert describe({"kind": "checkpoint_saved", "step": 1}) is None
    assert describe({"kind": "validation", "step": 1}) is None  # without a single prediction
    profile = {"kind": "profile", "step": 52, "path": "logs/trace.json.gz"}
    assert describe(profile) == "step 52: profile in logs/trace.json.gz"
    spike = {"kind": "rollback", "step": 50, "spike_step": 61, "loss": "nan"}
    assert describe(spike) == "step 61: the loss is nan: back to step 50; the rows read since are left out"


def test_the_last_line_is_told_even_if_it_comes_just_before_the_end(tmp_path):
    told, path = Told(), tmp_path / "metrics.jsonl"
    with watched(path, 0, 100, told):
        path.write_text(json.dumps({"kind": "train", "step": 100, "loss": 1.0}) + "\n")
    assert told.updates == [(100, {"loss": 1.0})]
    assert path not in [file.resolve() for file in Path("/proc/self/fd").iterdir()]  # nothing stays open
