"""``metrics.jsonl`` through kills and resumes."""

from __future__ import annotations

import json

import pytest

from kexue_train.metrics.file import read_metrics
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor.loggers import MetricLogger
from kexue_train.train.objective import mean_scores


@pytest.fixture
def paths(tmp_path):
    with MetricLogger(TrainDir(tmp_path), resumed_step=0) as metrics:
        for step in range(1, 6):
            metrics.write("train", step, loss=1 / step)
            if step % 2 == 0:
                metrics.write("validation", step, mlm_loss=2 / step)
    return TrainDir(tmp_path)


def _steps(paths: TrainDir) -> list[tuple[str, int]]:
    return [(record["kind"], record["step"]) for record in read_metrics(paths.metrics)]


def test_lines_after_the_resumed_step_are_cut(paths):
    with MetricLogger(paths, resumed_step=2) as metrics:
        metrics.write("resume", 2)
        metrics.write("train", 3, loss=0.25)
    assert _steps(paths) == [("train", 1), ("train", 2), ("validation", 2), ("resume", 2), ("train", 3)]


def test_kept_lines_keep_their_bytes(paths):
    before = paths.metrics.read_bytes()
    MetricLogger(paths, resumed_step=5).__exit__(None, None, None)
    assert paths.metrics.read_bytes() == before


def test_a_torn_last_line_is_left_out_and_then_cut(paths):
    whole = paths.metrics.read_bytes()
    for length in range(1, 20):
        paths.metrics.write_bytes(whole + json.dumps({"kind": "train", "step": 6}).encode()[:length])
        assert _steps(paths)[-1] == ("train", 5)
    with MetricLogger(paths, resumed_step=5) as metrics:
        metrics.write("train", 6, loss=0.5)
    assert _steps(paths)[-2:] == [("train", 5), ("train", 6)]


def test_no_file_is_no_lines(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_means_divide_sums_and_leave_out_a_task_without_examples():
    heads = pretraining_heads(ObjectiveConfig())
    assert mean_scores([[6.0, 3, 4], [1.0, 1, 2]], heads) == {
        "mlm_loss": 1.5, "mlm_accuracy": 0.75, "predictions": 4, "nsp_loss": 0.5, "nsp_accuracy": 0.5, "pairs": 2
    }  # fmt: skip
    assert mean_scores([[6.0, 3, 4], [0.0, 0, 0]], heads).keys() == {"mlm_loss", "mlm_accuracy", "predictions"}
