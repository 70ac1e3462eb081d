"""Keys and columns that are neither text nor kept are known to whoever reads."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from tests.corpus.written_formats import WRITERS

ROWS = [{"text": f"text {i}", "source": "s"} for i in range(9)]
NESTED = {"meta": {"text": "a", "url": "u", "place": {"line": 1}}, "a.b": 1, "a": {"b": 2, "c": 3}}


def unread(path, **options):
    (source,) = find_inputs([str(path)])
    return set().union(*(block.unread for block in read_records(source, ReadOptions(block_bytes=64, **options))))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a.txt"])
def test_every_format_tells_what_is_not_read(tmp_path, name):
    (tmp_path / name).write_bytes(WRITERS[name](ROWS))
    assert unread(tmp_path / name) == {"source"}
    assert unread(tmp_path / name, keep=("source",)) == set()
    assert unread(tmp_path / name, text_keys=("source", "text")) == set()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"text_keys": ("meta.text",)}, {"meta.url", "meta.place", "a.b", "a"}),
        ({"text_keys": ("meta.text",), "keep": ("meta.place.line", "a.b")}, {"meta.url", "a.c"}),
        ({"text_keys": ("meta.text",), "keep": ("meta", "a")}, {"a.b"}),
    ],
)
def test_of_objects_and_structs_the_other_keys_are_told(tmp_path, options, expected):
    (tmp_path / "a.jsonl").write_text(json.dumps(NESTED))
    assert unread(tmp_path / "a.jsonl", **options) == expected
    pq.write_table(pa.Table.from_pylist([NESTED]), tmp_path / "a.parquet")
    assert unread(tmp_path / "a.parquet", **options) == expected


def test_a_key_in_any_record_is_told(tmp_path):
    lines = [{"text": "a"}] * 50 + [{"text": "a", "rare": None}] + [{"text": "a"}] * 50
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert unread(tmp_path / "a.jsonl") == {"rare"}
