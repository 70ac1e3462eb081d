from __future__ import annotations

import os
from pathlib import Path

import pytest

from kexue_train.corpus.inputs import find_inputs, split_suffixes
from kexue_train.errors import CorpusError

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
        ("a.csv", (None, None)),
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


def test_an_unknown_suffix_needs_a_format(tmp_path):
    (tmp_path / "data").write_bytes(LINE)
    with pytest.raises(CorpusError, match="--format"):
        find_inputs([str(tmp_path / "data")])
    assert find_inputs([str(tmp_path)], format="jsonl")[0].format == "jsonl"


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("a.jsonl", b"\x1f\x8b\x08\x00", "gzip"),
        ("a.jsonl.gz", LINE, "is named as gzip"),
        ("a.txt", "text".encode("utf-16"), "iconv"),
        ("a.parquet", b"ARROW1\0\0", "those of arrow"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused_at_once(tmp_path, name, head, message):
    (tmp_path / name).write_bytes(head)
    with pytest.raises(CorpusError, match=message):
        find_inputs([str(tmp_path / name)])
