"""What a training tells whoever watches: saved checkpoints and losses that are no number, once each, nothing old."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kexue_train.foundation.errors import TrainingError
from kexue_train.train.faults.spikes import Spike
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor.happenings import Happening, TrainingWatch, ended_nonfinite, happening_of, metrics_table


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
        four, six = (Happening("checkpoint_saved", n, str(paths.checkpoints / f"step-{n:08d}")) for n in (4, 6))
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
        assert [happening.step for happening in watch.read()] == [2, 4]
        assert [row["step"] for row in watch.table()] == ["1"]


def test_a_loss_that_is_no_number_is_told_and_one_that_jumps_is_not(tmp_path: Path) -> None:
    facts = [{"kind": "rollback", "step": 4} | Spike(7, loss, 1.0).facts for loss in (math.nan, 99.0)]
    assert [happening_of(record, TrainDir(tmp_path)) for record in facts] == [
        Happening("loss_nonfinite", 7, "nan"),
        None,
    ]
    warning = {"kind": "warning", "symptom": "loss", "step": 3, "message": "the loss is no number"}
    assert happening_of(warning, TrainDir(tmp_path)) == Happening("loss_nonfinite", 3, "the loss is no number")


def test_so_is_a_training_that_ended_with_one() -> None:
    ended = TrainingError(f"{Spike(7, math.inf, 1.0)}, and train.on_spike=stop. The checkpoints are from before it")
    assert ended_nonfinite(ended) == Happening("loss_nonfinite", 7, "inf")
    assert ended_nonfinite(TrainingError(f"{Spike(7, 99.0, 1.0)}, and train.on_spike=stop")) is None


def test_the_table_has_few_rows_with_the_last_among_them() -> None:
    lines = [{"step": step, "loss": 1.0 / step, "tokens_per_second": 1234.0} for step in range(1, 101)]
    table = metrics_table(lines, rows=30)
    assert [row["step"] for row in table] == [str(step) for step in range(4, 101, 4)]
    assert table[-1] == {"step": "100", "loss": "0.01", "tokens_per_second": "1,234"}
