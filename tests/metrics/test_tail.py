"""A growing file of metrics, followed line by line."""

from __future__ import annotations

import pytest

from kexue_train.metrics.file import MetricTail
from kexue_train.train.job import TrainDir
from kexue_train.train.monitor.loggers import MetricLogger


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
