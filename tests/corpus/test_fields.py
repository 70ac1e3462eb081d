from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.corpus.builder import UNKEPT, encode_extras, pick_extras
from kexue_train.foundation.errors import CorpusError

RECORDS = [
    {"title": "T", "body": "B", "n": 5, "o": {"a": 1}},
    {"title": None, "body": "only a body", "n": None, "o": None},
    {"title": "only a title", "body": None, "n": 6, "o": {"a": 2}},
    {"title": None, "body": None, "n": 7, "o": None},
]
TEXTS = ["T\nB", "only a body", "only a title"]
EXTRAS = [b'["5","{\\"a\\":1}",null]', b"[null,null,null]", b'["6","{\\"a\\":2}",null]']


def to_lines(path):
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))


def to_array(path):
    path.write_text(json.dumps(RECORDS))


def to_parquet(path):
    pq.write_table(pa.Table.from_pylist(RECORDS), path)


def to_arrow(path):
    table = pa.Table.from_pylist(RECORDS)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", to_lines), ("a.json", to_array), ("a.parquet", to_parquet), ("a.arrow", to_arrow)],
)
def test_several_keys_are_joined_and_values_are_kept_alike_in_every_format(tmp_path, read, name, write):
    write(tmp_path / name)
    result = read(tmp_path / name, text_keys=("title", "body"), keep=("n", "o", "none"))
    assert (result.texts, result.extras) == (TEXTS, EXTRAS)
    assert result.rejected == {"none of 'title', 'body' is there": 1}


def test_of_several_keys_a_value_of_another_type_rejects_the_record(tmp_path, read):
    (tmp_path / "a.jsonl").write_text('{"a": "x", "b": 1}\n{"a": "x"}\n{"b": "y", "a": null}\n')
    result = read(tmp_path / "a.jsonl", text_keys=("a", "b"))
    assert (result.texts, result.rejected) == (["x", "y"], {"'b' is not a string": 1})


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_columns_of_tables_are_joined_and_kept(tmp_path, read, caplog, name):
    comma = "," if name == "a.csv" else "\t"
    (tmp_path / name).write_text(f"a{comma}b{comma}c\n1{comma}2{comma}中\n".replace(",", comma))
    result = read(tmp_path / name, text_keys=("a", "none", "b"), keep=("c", "lost"))
    assert (result.texts, result.extras) == (["1\n2"], ['["中",null]'.encode()])
    assert "no column 'lost' to keep" in caplog.text
    with pytest.raises(CorpusError, match="has no column 'text'; its columns: 'a', 'b', 'c'"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["wiki", None], b'["wiki",null]'),
        ([5, True, 1.5], b'["5","true","1.5"]'),
        ([{"a": ["中"]}], '["{\\"a\\":[\\"中\\"]}"]'.encode()),
    ],
)
def test_kept_values_are_strings_or_nulls(values, expected):
    assert encode_extras(values) == expected


def test_kept_values_follow_their_text_when_others_are_left_out(tmp_path, read):
    (tmp_path / "a.jsonl").write_text('{"text": " ", "k": "blank"}\n{"k": "none"}\n{"text": "x", "k": "mine"}\n')
    assert read(tmp_path / "a.jsonl", keep=("k",)).extras == [b'["mine"]']
    values = pa.array([b"\xff", b"good", b"x"]).view(pa.string())
    pq.write_table(
        pa.table({"text": values, "k": pa.array([b"a", b"b", b"\xff"]).view(pa.string())}), tmp_path / "b.parquet"
    )
    result = read(tmp_path / "b.parquet", keep=("k",))
    assert (result.texts, result.extras, result.rejected) == (["good"], [b'["b"]'], {"not UTF-8": 2})


def test_nothing_can_be_kept_of_text_or_as_binary(tmp_path, read):
    (tmp_path / "a.txt").write_text("x\n")
    with pytest.raises(CorpusError, match=r"a\.txt: is a text file, which has no columns to keep"):
        read(tmp_path / "a.txt", keep=("k",))
    pq.write_table(pa.table({"text": ["a"], "k": [b"b"]}), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="'k' holds binary"):
        read(tmp_path / "a.parquet", keep=("k",))


def write_columns(path, **columns):
    pq.write_table(pa.table({"text": ["a", "b"], **columns}), path)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"b": b"\xff"}, None]),
        pa.array([[b"a"], []]),
        pa.array([[("k", b"a")], []], pa.map_(pa.string(), pa.binary())),
        pa.array([b"a", b"b"]).dictionary_encode(),
        pa.array([b"a", b"b"], pa.binary(1)),
        pa.array([[[{"c": b"a"}]], None]),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_holds_binary_data_anywhere_is_not_kept(tmp_path, read, column):
    write_columns(tmp_path / "a.parquet", blob=column)
    with pytest.raises(CorpusError, match=r"column 'blob' holds .*: binary data, which JSON cannot hold"):
        read(tmp_path / "a.parquet", keep=("blob",))


def test_values_that_python_does_not_know_are_rejected_one_by_one(tmp_path, read):
    write_columns(tmp_path / "a.parquet", when=pa.array([-800_000, 1], pa.date32()))
    result = read(tmp_path / "a.parquet", keep=("when",))
    assert (result.texts, result.extras) == (["b"], [b'["\\"1970-01-02\\""]'])
    assert result.rejected == {"value that cannot be kept": 1}


def test_a_column_of_nulls_holds_records_without_a_text(tmp_path, read):
    table = pa.table(
        {"text": pa.nulls(3), "id": [1, 2, 3], "a": pa.array([{"b": None}] * 3, pa.struct([("b", pa.null())]))}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    for keys in (("text",), ("a.b",)):
        result = read(tmp_path / "a.parquet", text_keys=keys)
        assert (result.texts, result.rejected) == ([], {f"'{keys[0]}' is not a string": 3})
    assert read(tmp_path / "a.parquet", text_keys=("text", "a.b")).rejected.total() == 3


def test_binary_values_of_records_are_not_kept():
    assert pick_extras({"blob": {"bytes": b"a"}}, ("blob",)) == (UNKEPT, "found a bytes, which JSON cannot hold")
