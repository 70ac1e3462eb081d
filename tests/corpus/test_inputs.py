from __future__ import annotations

import gzip
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kexue_train.corpus.formats import split_suffixes
from kexue_train.corpus.inputs import check_unchanged, find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.foundation.errors import CorpusError

LINE = b'{"text": "A river."}\n'


def names(*patterns, **options):
    return [Path(source.path).name for source in find_inputs([str(p) for p in patterns], **options)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", ("jsonl", None)),
        ("a.b.NDJSON.GZ", ("jsonl", "gzip")),
        ("a.txt.zst", ("text", "zstd")),
        ("a.parquet", ("parquet", None)),
        ("data-00000-of-00002.arrow", ("arrow", None)),
        ("a.csv", ("csv", None)),
        ("a.tsv.xz", ("tsv", "xz")),
        ("a.json.lz4", ("json", "lz4")),
        ("a.jsonlines.gzip", ("jsonl", "gzip")),
        ("a.jl.zstd", ("jsonl", "zstd")),
        ("a.text.lzma", ("text", "lzma")),
        ("a.pq", ("parquet", None)),
        ("a.feather", ("arrow", None)),
        ("a.tab.bzip2", ("tsv", "bz2")),
        ("a.doc", (None, None)),
        ("gz", (None, None)),
    ],
)
def test_the_suffix_tells_format_and_compression(name, expected):
    assert split_suffixes(name) == expected


def test_a_folder_gives_its_data_files_sorted_and_leaves_out_hidden_and_others(tmp_path):
    for name in ("b.jsonl", "a.txt", ".hidden.jsonl", "state.json", "sub/c.jsonl", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    assert names(tmp_path) == ["a.txt", "b.jsonl", "c.jsonl"]
    assert names(f"{tmp_path}/*.jsonl") == ["b.jsonl"]
    assert names(f"{tmp_path}/**/*.jsonl") == ["b.jsonl", "c.jsonl"]


def test_a_name_that_looks_like_a_glob_is_taken_as_a_name(tmp_path):
    (tmp_path / "data [1] & 中文.jsonl").write_bytes(LINE)
    assert names(tmp_path / "data [1] & 中文.jsonl") == ["data [1] & 中文.jsonl"]


def test_the_same_file_is_read_once_however_often_and_by_whatever_link_it_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINE)
    os.link(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").symlink_to("a.jsonl")
    assert names(tmp_path, tmp_path / "a.jsonl") == ["a.jsonl"]


def test_a_loop_of_folders_is_walked_once(tmp_path):
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "up").symlink_to("..")
    (tmp_path / "tree" / "sub" / "a.jsonl").write_bytes(LINE)
    assert names(tmp_path) == ["a.jsonl"]


def test_what_cannot_be_read_is_refused_by_name(tmp_path):
    (tmp_path / "dangling.jsonl").symlink_to("nowhere.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo(tmp_path / "fifo.jsonl")
    for name in ("dangling.jsonl", "loop.jsonl", "fifo.jsonl"):
        with pytest.raises(CorpusError, match=name):
            find_inputs([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0"])
def test_the_standard_input_has_several_names(name):
    (source,) = find_inputs([name])
    assert (source.path, source.format, source.units) == ("-", "text", 1)


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_what_a_shell_hands_over_open_is_read_without_being_touched_before(folder):
    reading, writing = os.pipe()
    os.write(writing, b"one\ntwo\n")
    os.close(writing)
    (source,) = find_inputs([f"{folder}/{reading}"])
    check_unchanged([source])
    assert [text for block in read_records(source) for text in block.texts.to_pylist()] == ["one", "two"]
    os.close(reading)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_is_refused(tmp_path):
    (tmp_path / "secret.jsonl").write_bytes(LINE)
    (tmp_path / "secret.jsonl").chmod(0)
    with pytest.raises(CorpusError, match="Permission"):
        find_inputs([str(tmp_path)])


def test_a_typo_is_answered_with_the_nearest_name(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(LINE)
    with pytest.raises(CorpusError, match=r"did you mean .*corpus\.jsonl"):
        find_inputs([str(tmp_path / "corpsu.jsonl")])
    with pytest.raises(CorpusError, match="no inputs"):
        find_inputs([])


def test_an_unknown_suffix_needs_a_format_unless_the_content_is_certain(tmp_path):
    (tmp_path / "data").write_bytes(b"A river.\n")
    with pytest.raises(CorpusError, match="--format"):
        find_inputs([str(tmp_path / "data")])
    assert find_inputs([str(tmp_path)], format="text")[0].format == "text"


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("a.jsonl", b"\x1f\x8b\x08\x00", "gzip"),
        ("a.jsonl.gz", LINE, "the name says gzip"),
        ("a.txt", "text".encode("utf-16"), "iconv"),
        ("a.parquet", b"ARROW1\0\0", "the file is arrow data"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_at_once(tmp_path, name, head, message):
    (tmp_path / name).write_bytes(head)
    with pytest.raises(CorpusError, match=message):
        find_inputs([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("name", "document", "units"),
    [
        ("a.jsonl", "line", 21),
        ("a.txt", "line", 21),
        ("a.txt", "block", 21),
        ("a.txt", "file", 1),
        ("a.tsv", "line", 21),
        ("a.csv", "line", 1),
        ("a.json", "line", 21),  # JSON Lines by another name
    ],
)
def test_the_units_of_plain_line_files_are_bytes(tmp_path, name, document, units):
    (tmp_path / name).write_bytes(LINE)
    (source,) = find_inputs([str(tmp_path / name)], document=document)
    assert source.units == units


def test_the_units_of_column_files_are_row_groups_and_batches(tmp_path):
    table = pa.table({"text": ["a"] * 7})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    for name, write in (("b.arrow", pa.ipc.new_file), ("c.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as file, write(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    assert [source.units for source in find_inputs([str(tmp_path)])] == [3, 4, 1]


def test_a_json_file_is_an_array_or_json_lines_by_its_first_character(tmp_path):
    (tmp_path / "a.json").write_bytes(b' \n[{"text": "a"}]')
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + LINE))
    found = find_inputs([str(tmp_path)])
    assert [(source.format, source.compression) for source in found] == [("json", None), ("jsonl", "gzip")]


def test_relative_lines_of_a_list_start_at_the_current_folder_or_else_at_its_own(tmp_path, monkeypatch):
    for name in ("lists/a.txt", "lists/deep/b.txt", "here/a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("one\n")
    (tmp_path / "lists" / "files.txt").write_text("a.txt\ndeep/*.txt\n")
    for folder, first in (("here", "here/a.txt"), ("lists/deep", "lists/a.txt")):
        monkeypatch.chdir(tmp_path / folder)
        found = [source.path for source in find_inputs([f"@{tmp_path}/lists/files.txt"])]
        assert found == sorted([f"{tmp_path}/{first}", f"{tmp_path}/lists/deep/b.txt"])


def test_a_list_names_inputs_line_by_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b 1.jsonl", "c.jsonl"):
        (tmp_path / name).write_bytes(LINE)
    (tmp_path / "files.txt").write_text("\nb 1.jsonl\r\n\n*c.jsonl\n")
    assert names("@files.txt", "a.jsonl") == ["a.jsonl", "b 1.jsonl", "c.jsonl"]
    (tmp_path / "files.txt").write_text("a.jsonl\n@files.txt\n")
    with pytest.raises(CorpusError, match=r"files\.txt:2: @files\.txt is a list within a list"):
        find_inputs(["@files.txt"])
    (tmp_path / "files.txt").write_text("\n")
    with pytest.raises(CorpusError, match="is empty"):
        find_inputs(["@files.txt"])
    with pytest.raises(CorpusError, match=r"none\.txt: cannot be read"):
        find_inputs(["@none.txt"])


def test_a_file_uri_is_a_local_path(tmp_path):
    (tmp_path / "a b.jsonl").write_bytes(LINE)
    (source,) = find_inputs([(tmp_path / "a b.jsonl").as_uri()])
    assert source.path == str(tmp_path / "a b.jsonl")


def test_standard_input_is_text_unless_told(tmp_path):
    (source,) = find_inputs(["-"])
    assert (source.path, source.format, source.bytes, source.units) == ("-", "text", 0, 1)
    assert find_inputs(["-"], format="jsonl")[0].format == "jsonl"


def test_weights_go_to_the_files_of_their_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "sub/b.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    found = find_inputs(["a.jsonl", "sub"], weights={"sub": 2.5})
    assert [source.weight for source in found] == [1.0, 2.5]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a.jsno": 2.0}, r"a\.jsno, which is not an input; did you mean a\.jsonl"),
        ({"a.jsonl": 0.0}, "the weight 0 is not above 0"),
        ({"a.jsonl": float("nan")}, "the weight nan"),
        ({"a.jsonl": float("inf")}, "the weight inf"),
        ({"a.jsonl": 2.0}, "weights 2 and 1|weights 1 and 2"),
    ],
)
def test_a_wrong_weight_is_refused(tmp_path, monkeypatch, weights, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_bytes(LINE)
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    with pytest.raises(CorpusError, match=message):
        find_inputs(["a.jsonl", "b.jsonl"], weights=weights)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(LINE)
    found = find_inputs([str(tmp_path)])
    check_unchanged(found)
    (tmp_path / "a.jsonl").write_bytes(LINE * 2)
    with pytest.raises(CorpusError, match="was changed while it was read"):
        check_unchanged(found)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(CorpusError, match="was changed while it was read"):
        check_unchanged(found)
