from __future__ import annotations

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import count_lines, read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.foundation.errors import CorpusError

TEXTS = ["The river rose.", "Zwei\nZeilen", "中文，文档。", "tab\tand \u2028 and \u0000"]


def pack_with_arrow(data: bytes, codec: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(data)
    return sink.getvalue().to_pybytes()


PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pack_with_arrow(data, "zstd"),
    "lz4": lambda data: pack_with_arrow(data, "lz4"),
}


def to_jsonl(texts, key="text") -> bytes:
    return b"".join(json.dumps({key: text}, ensure_ascii=False).encode() + b"\n" for text in texts)


def write_stream(path, table):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_file(path, table):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


WRITERS = {
    "a.parquet": lambda path, table: pq.write_table(table, path, row_group_size=3),
    "b.arrow": write_stream,
    "c.arrow": write_file,
}


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_lines_are_read_with_line_numbers_as_positions(tmp_path, read, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(PACKERS[suffix](to_jsonl(TEXTS)))
    result = read(path, block_bytes=16)
    assert (result.texts, result.positions) == (TEXTS, [0, 1, 2, 3])


@pytest.mark.parametrize("suffix", PACKERS)
def test_archives_of_several_members_are_read_to_the_end(tmp_path, read, suffix):
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(PACKERS[suffix](b"one\ntw") + PACKERS[suffix](b"o\nthree\n"))
    assert read(path).texts == ["one", "two", "three"]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("damage", ["cut", "flip", "tail"])
def test_a_damaged_archive_is_an_error_that_names_file_and_byte(tmp_path, read, suffix, damage):
    whole = PACKERS[suffix](to_jsonl(f"{i} {i * 7919 % 1000}" for i in range(3000)))
    middle = len(whole) // 2
    data = {
        "cut": whole[:middle],
        "flip": whole[:middle] + bytes(byte ^ 0x5A for byte in whole[middle : middle + 40]) + whole[middle + 40 :],
        "tail": whole[:-3],
    }[damage]
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(data)
    if damage == "flip" and suffix == "lz4":
        pytest.skip("this writer adds no checksum to lz4 frames, so a flipped byte shows as bad records at most")
    with pytest.raises(CorpusError, match=rf"a\.jsonl\.{suffix}: the \w+ data is cut off or damaged near byte \d+"):
        read(path)


def test_positions_of_plain_lines_are_byte_offsets_however_the_file_is_cut(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + to_jsonl(TEXTS))
    (source,) = find_inputs([str(path)])
    lines = path.read_bytes().split(b"\n")[:-1]
    expected = {sum(len(line) + 1 for line in lines[:i]): text for i, text in enumerate(TEXTS)}
    for cut in range(source.bytes):
        found = {}
        for start, end in ((0, cut), (cut, None)):
            for block in read_records(source, ReadOptions(block_bytes=8), start=start, end=end):
                found |= dict(zip(block.positions.tolist(), block.texts.to_pylist(), strict=True))
        assert found == expected
    assert [count_lines(source, position) for position in expected] == [1, 2, 3, 4]


@given(st.lists(st.text(st.characters(exclude_categories=["Z", "C"]), max_size=5), max_size=12), st.integers(1, 99))
def test_text_lines_come_back_and_empty_ones_are_counted(tmp_path_factory, read, texts, block_bytes):
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes("".join(f"{text}\r\n" for text in texts).encode())
    result = read(path, block_bytes=block_bytes)
    assert result.texts == [text for text in texts if text]
    assert result.blank == texts.count("")


def test_only_line_feeds_end_a_text_line_and_line_ends_are_taken_off(tmp_path, read):
    (tmp_path / "a.txt").write_bytes("a\x0bb\x85c\u2028d\r\n  e  \nlast".encode())
    assert read(tmp_path / "a.txt").texts == ["a\x0bb\x85c\u2028d", "  e  ", "last"]


def test_lines_that_are_not_utf8_are_rejected_one_by_one(tmp_path, read):
    (tmp_path / "a.txt").write_bytes(b"good\nb\xffad\n\xed\xa0\x80\nfine\n")
    result = read(tmp_path / "a.txt")
    assert result.texts == ["good", "fine"]
    assert (result.rejected, result.rejected_positions) == ({"not UTF-8": 2}, [5, 10])


def test_a_dotted_key_goes_into_objects_unless_a_key_has_that_name(tmp_path, read):
    (tmp_path / "a.jsonl").write_text('{"a": {"b": "inner"}}\n{"a.b": "plain", "a": {"b": "inner"}}\n{"a": 1}\n')
    result = read(tmp_path / "a.jsonl", text_keys=("a.b",))
    assert result.texts == ["inner", "plain"]
    assert result.rejected == {"no key 'a.b'": 1}


def test_a_lone_surrogate_and_endless_nesting_are_rejected(tmp_path, read):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud800"}\n' + b"[" * 100_000 + b"\n" + to_jsonl(["good"]))
    result = read(tmp_path / "a.jsonl")
    assert (result.texts, result.rejected) == (["good"], {"not valid JSON": 2})


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_columns_of_every_string_type_are_read_with_row_numbers(tmp_path, read, name, kind):
    if kind == pa.string_view() and name == "a.parquet":
        pytest.skip("Parquet has no string view")
    values = pa.array([*TEXTS, None, "", " "]).cast(kind)
    WRITERS[name](tmp_path / name, pa.table({"id": range(7), "text": values}))
    result = read(tmp_path / name, block_bytes=20)
    assert (result.texts, result.positions) == (TEXTS, [0, 1, 2, 3])
    assert (result.blank, result.rejected) == (2, {"'text' is not a string": 1})


@pytest.mark.parametrize("name", WRITERS)
def test_a_nested_column_is_reached_by_a_dotted_key(tmp_path, read, name):
    WRITERS[name](tmp_path / name, pa.table({"a": [{"b": text, "c": 1} for text in TEXTS]}))
    assert read(tmp_path / name, text_keys=("a.b",)).texts == TEXTS


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_or_unfit_column_is_named_with_what_there_is(tmp_path, read, name):
    WRITERS[name](tmp_path / name, pa.table({"id": [1], "content": ["x"]}))
    with pytest.raises(CorpusError, match="'id', 'content'"):
        read(tmp_path / name)
    with pytest.raises(CorpusError, match="holds int64"):
        read(tmp_path / name, text_keys=("id",))


@pytest.mark.parametrize("name", WRITERS)
def test_a_column_file_cut_anywhere_is_an_error(tmp_path, read, name):
    WRITERS[name](tmp_path / name, pa.table({"text": [f"text {i}" for i in range(9)]}))
    whole = (tmp_path / name).read_bytes()
    for size in range(8, len(whole), 37):
        (tmp_path / name).write_bytes(whole[:size])
        with pytest.raises(CorpusError, match=name.replace(".", r"\.")):
            read(tmp_path / name)
    (tmp_path / name).write_bytes(whole)
    assert len(read(tmp_path / name).texts) == 9


def test_our_own_and_hugging_face_folders_are_read_through_their_shards(tmp_path, read):
    for i in range(2):
        write_stream(tmp_path / f"data-0000{i}-of-00002.arrow", pa.table({"text": [f"shard {i}"]}))
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert read(tmp_path).texts == ["shard 0", "shard 1"]
