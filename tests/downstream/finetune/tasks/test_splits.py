"""Which records are learnt from and which are scored."""

from __future__ import annotations

import gzip
import json

import pytest

from kexue_train.downstream.finetune.tasks.splits import read_splits
from kexue_train.downstream.finetune.tasks.task import ClassificationTask
from kexue_train.foundation.errors import EvaluationError
from tests.downstream.finetune.tasks.tiny_tasks import write_records

RECORDS = [{"text": f"text {i // 2}", "label": str(i % 2)} for i in range(400)]


def task(**files):
    return ClassificationTask(title="t", kind="classification", **{"train": "train.jsonl", **files})


def read(folder, chosen, max_train=None, max_eval=None):
    return read_splits(chosen, folder, lambda record: record.text("text"), max_train=max_train, max_eval=max_eval)


def values(records):
    return [json.dumps(record.values) for record in records]


def test_without_a_dev_file_about_a_tenth_of_the_texts_is_held_out(tmp_path):
    write_records(tmp_path / "train.jsonl", RECORDS)
    splits = read(tmp_path, task())
    assert splits.is_dev_held_out
    assert splits.test is None
    assert sorted(values(splits.train) + values(splits.dev)) == sorted(json.dumps(record) for record in RECORDS)
    texts = [{record.text("text") for record in part} for part in (splits.train, splits.dev)]
    assert not texts[0] & texts[1]  # both records of a text go together
    assert abs(len(texts[1]) - 20) < 4 * (200 * 0.1 * 0.9) ** 0.5


def test_neither_the_order_of_the_file_nor_anything_else_changes_the_choice(tmp_path):
    write_records(tmp_path / "a" / "train.jsonl", RECORDS)
    write_records(tmp_path / "b" / "train.jsonl", RECORDS[::-1])
    one, other = (read(tmp_path / name, task(), max_train=50, max_eval=10) for name in "ab")
    assert (len(one.train), len(one.dev)) == (50, 10)
    assert set(values(one.train)) == set(values(other.train))
    assert set(values(one.dev)) == set(values(other.dev))


def test_a_smaller_choice_is_part_of_a_larger_one(tmp_path):
    write_records(tmp_path / "train.jsonl", RECORDS)
    small, large = (read(tmp_path, task(), max_train=size) for size in (20, 60))
    assert set(values(small.train)) < set(values(large.train))
    assert len(small.all_train) == len(large.all_train) > 300


def test_files_are_taken_as_they_are_and_may_be_gzipped(tmp_path):
    write_records(tmp_path / "train.jsonl", RECORDS[:5])
    write_records(tmp_path / "dev.jsonl", RECORDS[5:8])
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS[8:12])
    (tmp_path / "test.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    splits = read(tmp_path, task(dev="dev.jsonl", test="test.jsonl.gz"))
    assert [len(records) for records in (splits.train, *splits.scored.values())] == [5, 3, 4]
    assert not splits.is_dev_held_out


def test_missing_damaged_empty_and_too_small_files_are_named(tmp_path):
    write_records(tmp_path / "train.jsonl", RECORDS[:1])
    with pytest.raises(EvaluationError, match=r"train.jsonl: 1 records are too few to hold some out; name a dev file"):
        read(tmp_path, task())
    with pytest.raises(EvaluationError, match=r"dev.jsonl: cannot be read \(No such file"):
        read(tmp_path, task(dev="dev.jsonl"))
    (tmp_path / "dev.jsonl").write_text("\n")
    with pytest.raises(EvaluationError, match=r"dev.jsonl: holds no record"):
        read(tmp_path, task(dev="dev.jsonl"))
    whole = gzip.compress(b'{"text": "a", "label": "b"}\n' * 100)
    for damaged in (whole[:-9], b"no gzip", whole[:20] + b"xxxx" + whole[24:]):
        (tmp_path / "dev.jsonl.gz").write_bytes(damaged)
        with pytest.raises(EvaluationError, match=r"dev.jsonl.gz: cannot be read \(damaged gzip data"):
            read(tmp_path, task(dev="dev.jsonl.gz"))
