"""A name that stands for two values is refused, by the record in JSON, by the file in tables; the others are read."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.foundation.errors import CorpusError


def write_parquet(path, table):
    pq.write_table(table, path)


def write_arrow(path, table):
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


COLUMN_FILES = {"a.parquet": write_parquet, "a.arrow": write_arrow}
A, B = pa.array(["a"]), pa.array(["b"])


@pytest.mark.parametrize("name", COLUMN_FILES)
def test_two_columns_of_the_name_that_is_needed_are_refused(tmp_path, read, name):
    COLUMN_FILES[name](tmp_path / name, pa.Table.from_arrays([A, B, A], names=["text", "id", "id"]))
    assert read(tmp_path / name).texts == ["a"]
    with pytest.raises(CorpusError, match="has several columns 'id'"):
        read(tmp_path / name, keep=("id",))
    with pytest.raises(CorpusError, match="has several columns 'id'"):
        read(tmp_path / name, text_keys=("id",))


@pytest.mark.parametrize("name", COLUMN_FILES)
def test_two_fields_of_a_struct_are_refused_too(tmp_path, read, name):
    inner = pa.StructArray.from_arrays([A, B], names=["b", "b"])
    COLUMN_FILES[name](tmp_path / name, pa.Table.from_arrays([inner, A, B], names=["a", "c", "c"]))
    with pytest.raises(CorpusError, match=r"has several columns 'a\.b'"):
        read(tmp_path / name, text_keys=("a.b",))
    with pytest.raises(CorpusError, match=r"has several columns 'c\.b'"):
        read(tmp_path / name, text_keys=("c.b",))


@pytest.mark.parametrize(("name", "sign"), [("a.csv", ","), ("a.tsv", "\t")])
def test_a_header_with_a_name_twice_is_refused_if_the_name_is_needed(tmp_path, read, name, sign):
    (tmp_path / name).write_text(f"id{sign}text{sign}id\n1{sign}a{sign}2\n")
    assert read(tmp_path / name).texts == ["a"]
    with pytest.raises(CorpusError, match="has several columns 'id'"):
        read(tmp_path / name, keep=("id",))


RECORDS = [
    ('{"text": "a", "id": 1}', True),
    ('{"text": "b", "text": "c"}', False),
    ('{"type": "text", "text": "d \\"text\\": \\"e\\""}', True),
    ('{"text": "f", "parts": [{"text": "g"}, {"text": "h"}]}', True),
    ('{"id": 1, "id": 2, "text": "i"}', True),
    ('{"te\\u0078t": "j"}', True),
    ('{"title": "no text"}', False),
    ('{"text": "k", "meta": {"text": 1, "text": 2}}', False),
]


@pytest.mark.parametrize("form", ["jsonl", "json"])
@pytest.mark.parametrize("block_bytes", [1, 40, 10_000])
def test_a_json_object_with_a_key_twice_is_rejected_and_no_other(tmp_path, read, form, block_bytes):
    records = [record for record, _ in RECORDS]
    text = "\n".join(records) if form == "jsonl" else f"[{', '.join(records)}]"
    (tmp_path / f"a.{form}").write_text(text)
    result = read(tmp_path / f"a.{form}", block_bytes=block_bytes)
    assert result.texts == [json.loads(record)["text"] for record, is_good in RECORDS if is_good]
    assert result.rejected == {"key 'text' twice in an object": 2, "no key 'text'": 1}


def test_doubled_keys_to_keep_and_on_the_way_are_found(tmp_path, read):
    (tmp_path / "a.jsonl").write_text(
        '{"a": {"b": "x"}, "id": 1, "id": 2}\n{"a": {"b": "x"}, "a": {"b": "y"}, "id": 1}\n'
    )
    result = read(tmp_path / "a.jsonl", text_keys=("a.b",), keep=("id",))
    assert result.rejected == {"key 'id' twice in an object": 1, "key 'a' twice in an object": 1}
