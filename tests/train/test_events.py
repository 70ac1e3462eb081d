"""What a training tells whoever watches: saved checkpoints and losses that are no number, once each, nothing old."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kexue_train.foundation.errors import TrainingError
from kexue_train.train.faults.spikes import EndedBySpikeError, Spike
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor.events import (
    ProgressReporter,
    TrainingEvent,
    TrainingWatch,
    describe,
    event_of,
    metrics_table,
    progress_reported,
)
from kexue_train.train.restarts import report_failure


def write(paths: TrainDir, *records: dict[str, Any]) -> None:
    with paths.metrics.open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def saved(step: int) -> dict[str, Any]:
    return {"kind": "checkpoint_saved", "step": step}


def test_checkpoints_are_told_once_and_those_from_before_are_not(tmp_path: Path) -> None:
    paths = TrainDir(tmp_path)
    (paths.checkpoints / "step-00000002").mkdir(parents=True)
    with TrainingWatch(paths) as watch:
        write(paths, saved(2), saved(4))
        four, six = (TrainingEvent("checkpoint_saved", n, str(paths.checkpoints / f"step-{n:08d}")) for n in (4, 6))
        assert watch.read() == [four]
        write(paths, saved(4), saved(6))
        assert watch.read() == [six]
        assert watch.read() == []


def test_all_checkpoints_of_a_training_that_takes_the_place_of_another_are_told(tmp_path: Path) -> None:
    paths = TrainDir(tmp_path)
    (paths.checkpoints / "step-00000006").mkdir(parents=True)
    write(paths, saved(6))
    with TrainingWatch(paths) as watch:
        paths.metrics.rename(tmp_path / "replaced.jsonl")
        write(paths, {"kind": "start", "step": 0}, {"kind": "train", "step": 1, "loss": 1.0}, saved(2), saved(4))
        assert [event.step for event in watch.read()] == [2, 4]
        assert [row["step"] for row in watch.table()] == ["1"]


def test_a_loss_that_is_no_number_is_told_and_one_that_jumps_is_not(tmp_path: Path) -> None:
    facts = [{"kind": "rollback", "step": 4} | Spike(7, loss, 1.0).facts for loss in (math.nan, 99.0)]
    assert [event_of(record, TrainDir(tmp_path)) for record in facts] == [
        TrainingEvent("loss_nonfinite", 7, "nan"),
        None,
    ]
    warning = {"kind": "warning", "symptom": "loss", "step": 3, "message": "the loss is no number"}
    assert event_of(warning, TrainDir(tmp_path)) == TrainingEvent("loss_nonfinite", 3, "the loss is no number")


def test_so_is_a_training_that_fails_with_one(tmp_path: Path) -> None:
    paths = TrainDir(tmp_path)
    paths.logs.mkdir()
    report_failure(EndedBySpikeError("of the training before", 3, math.nan), paths)
    with TrainingWatch(paths) as watch:
        assert watch.read_failure() is None
        report_failure(TrainingError("step 9: the loss is nan"), paths)
        assert watch.read_failure() is None
        report_failure(EndedBySpikeError("a jump", 7, 99.0), paths)
        assert watch.read_failure() is None
        report_failure(EndedBySpikeError("no number", 7, math.inf), paths)
        assert watch.read_failure() == TrainingEvent("loss_nonfinite", 7, "inf")


def test_the_table_has_few_rows_with_the_last_among_them() -> None:
    lines = [{"step": step, "loss": 1.0 / step, "tokens_per_second": 1234.0} for step in range(1, 101)]
    table = metrics_table(lines, rows=30)
    assert [row["step"] for row in table] == [str(step) for step in range(4, 101, 4)]
    assert table[-1] == {"step": "100", "loss": "0.01", "tokens/s": "1,234"}


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


def test_a_person_is_told_the_state_after_the_last_line_and_what_happened_once():
    told = Told()
    reporter = ProgressReporter(5, 100, told)
    train = {"kind": "train", "step": 10, "loss": 5.0, "mfu": 0.3, "eta_seconds": 60.0, "rows": 80, "lr": 1e-3}
    validation = {"kind": "validation", "step": 10, "mlm_loss": 4.25, "mlm_accuracy": 0.25, "nsp_accuracy": 0.5}
    warning = {"kind": "warning", "step": 10, "symptom": "memory", "message": "97% of the memory is taken"}
    reporter.report([{**warning, "step": 4}, {**validation, "step": 5}])  # of the time before
    reporter.report([{"kind": "resume", "step": 5}, {**train, "step": 9}, train, validation, warning])
    reporter.report([])
    assert told.updates == [(10, {"loss": 5.0, "mfu": 0.3, "eta_seconds": 60.0, "lr": 1e-3})]
    assert told.notes == [
        "step 10: validation: MLM loss 4.25, MLM accuracy 25.0%; NSP accuracy 50.0%",
        "step 10: 97% of the memory is taken",
    ]
    reporter.report([{"kind": "resume", "step": 5}, train, validation, warning])  # after a fault
    assert told.notes[2:] == ["step 5: the workers were started again from its checkpoint"]
    assert _steps([{"step": done} for done, _ in told.updates]) == [10, 10]


def test_only_what_a_person_should_read_is_said():
    assert describe({"kind": "train", "step": 1}) is None
    assert describe({"kind": "checkpoint_saved", "step": 1}) is None
    assert describe({"kind": "validation", "step": 1}) is None  # without a single prediction
    profile = {"kind": "profile", "step": 52, "path": "logs/trace.json.gz"}
    assert describe(profile) == "step 52: profile in logs/trace.json.gz"
    spike = {"kind": "rollback", "step": 50, "spike_step": 61, "loss": "nan"}
    assert describe(spike) == "step 61: the loss is nan: back to step 50; the rows read since are skipped"


def test_the_last_line_is_told_even_if_it_comes_just_before_the_end(tmp_path):
    told, path = Told(), tmp_path / "metrics.jsonl"
    with progress_reported(path, 0, 100, told):
        path.write_text(json.dumps({"kind": "train", "step": 100, "loss": 1.0}) + "\n")
    assert told.updates == [(100, {"loss": 1.0})]
    assert path not in [file.resolve() for file in Path("/proc/self/fd").iterdir()]  # nothing stays open
