"""``metrics.jsonl`` through power cuts, full disks and other programs: foreign lines are left out and counted."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.metrics import file
from kexue_train.metrics.fields import LINES, Kind, Metric, TextField
from kexue_train.metrics.file import MetricTail, MetricWriter, describe_foreign, read_metric_lines, read_metrics

OURS = b'{"kind": "train", "step": 3, "loss": 1.5}\n'
FOREIGN = {
    b"\xff\xfe\x00\x81 garbage": "not JSON",
    b'{"kind": "train", "st': "not JSON",
    b"[" * 100_000: "not JSON",
    b'{"kind": "warning", "step": 1, "message": "\\ud83d"}': "not JSON",
    b"": "not JSON",
    b"\0" * 4096: "not JSON",
    b"\0" * 100 + OURS.strip(): "not JSON",
    OURS.strip() * 2: "not JSON",
    b"\xef\xbb\xbf" + OURS.strip(): "not JSON",
    OURS.decode().strip().encode("utf-16"): "not JSON",
    b'{"kind": "train", "step": 3, "loss": ' + b"1" * 5000 + b"}": "not JSON",
    b'{"kind": "train", "step": 3, "loss": "' + b"x" * 2**20: "not JSON",
    b'"train"': "not an object",
    b"[1, 2]": "not an object",
    b"NaN": "not an object",
    b"null": "not an object",
    b'{"step": 1, "loss": 2.0}': "of no known kind",
    b'{"kind": "epoch", "step": 1}': "of no known kind",
    b'{"kind": ["train"], "step": 1}': "of no known kind",
    b'{"kind": "train"}': "without a step",
    b'{"kind": "train", "step": "3"}': "without a step",
    b'{"kind": "train", "step": NaN}': "without a step",
    b'{"kind": "train", "step": null}': "without a step",
    b'{"kind": "train", "step": true}': "without a step",
    b'{"kind": "train", "step": -1}': "without a step",
    b'{"kind": "train", "step": 1' + b"0" * 400 + b"}": "without a step",
}


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: repr(line[:30]))
def test_a_foreign_line_is_left_out_and_counted_by_every_reader(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    tail = MetricTail(path)
    path.write_bytes(OURS + line + b"\n" + OURS)
    found = read_metric_lines(path)
    assert (len(found.records), found.foreign, found.is_torn) == (2, [FOREIGN[line]], False)
    assert (tail.read(), tail.foreign) == (found.records, found.foreign)
    assert (tail.read(), tail.foreign) == ([], [])
    tail.close()
    writer = MetricWriter(path, resumed_step=3)
    writer.close()
    assert writer.problem == f"{path}: 1 line is not from a training and ignored (the first: {FOREIGN[line]})"
    assert path.read_bytes() == 2 * OURS


@given(st.binary())
def test_no_bytes_stop_a_reader(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    path.write_bytes(OURS + data + b"\n" + OURS)
    assert len(read_metrics(path)) >= 2


def test_all_foreign_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"x\n" * 3 + OURS + b'{"kind"')
    found = read_metric_lines(path)
    assert found.is_torn
    assert describe_foreign(path, found.foreign).startswith(f"{path}: 3 lines are not from a training")


values: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none())
)


@given(values, st.sampled_from([field for fields in LINES.values() for field in fields]))
def test_a_value_of_any_type_is_a_number_that_can_be_written_or_none(value: Any, field: Metric | TextField) -> None:
    found = field.of({field.key: value})
    if isinstance(field, Metric):
        assert found is None or isinstance(field.write(found), str)
    else:
        assert isinstance(found, str)


class FullDisk:
    """A file whose disk takes ``room`` more bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return int(written)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def test_a_full_disk_loses_lines_and_says_so_once_there_is_room(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer, tail = MetricWriter(path, resumed_step=0), MetricTail(path)
    writer.write(Kind.TRAIN, 1, {"loss": 1.0})
    writer._file = full = FullDisk(writer._file, 20)  # type: ignore[assignment]
    writer.write(Kind.TRAIN, 2, {"loss": 1.0})
    during = tail.read()
    writer.write(Kind.TRAIN, 3, {"loss": 1.0})
    full.room = 10_000
    writer.write(Kind.TRAIN, 4, {"loss": 1.0})
    writer.close()
    found = read_metric_lines(path)
    assert (found.foreign, found.is_torn) == ([], False)
    assert [(record["kind"], record["step"]) for record in found.records] == [
        ("train", 1), ("warning", 4), ("train", 4),
    ]  # fmt: skip
    assert found.records[1]["message"] == f"{path}: 2 lines are missing, which could not be written"
    assert during + tail.read() == found.records
    tail.close()


def test_a_disk_that_is_full_at_a_resume_costs_no_line_that_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"kind": "train", "step": step}).encode() + b"\n" for step in (1, 2, 3)]
    path.write_bytes(lines[0] + b"\xff\n" + lines[1] + lines[2] + b'{"kind"')
    tail = MetricTail(path)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file, "write_atomic", fail)
    writer = MetricWriter(path, resumed_step=2)
    assert path.read_bytes() == lines[0] + b"\xff\n" + lines[1]
    writer.write(Kind.TRAIN, 3, {})
    writer.close()
    assert [record["step"] for record in tail.read()] == [1, 2, 3]
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3]
    tail.close()


def test_every_kind_of_line_declares_each_key_once() -> None:
    assert set(LINES) == set(Kind)
    for fields in LINES.values():
        keys = [field.key for field in fields]
        assert len(set(keys)) == len(keys)
        assert not {"kind", "step", "time"} & set(keys)


def test_kinds_are_written_as_their_names(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path, resumed_step=0)
    writer.write(Kind.VALIDATION, 5, {"mlm_loss": 2.0})
    writer.close()
    assert json.loads(path.read_text()) == {"kind": "validation", "step": 5, "mlm_loss": 2.0}
