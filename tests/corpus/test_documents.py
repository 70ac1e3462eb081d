from __future__ import annotations

import io
import itertools
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import describe_position
from kexue_train.corpus.records import ReadOptions
from kexue_train.corpus.text import read_blocks
from kexue_train.foundation.errors import CorpusError

LINES = st.lists(st.sampled_from(["a", "b c", "", " ", "\r", "中\r", "  d"]), max_size=20)


def blocks_of(text: str) -> list[str]:
    """An oracle by regular expression."""
    parts = re.split(r"(?:^|\n)[ \r]*(?=\n|$)", text)
    found = [part.strip("\n").removesuffix("\r").replace("\r\n", "\n") for part in parts]
    return [part for part in found if part]


@given(
    lines=LINES, end=st.sampled_from(["", "\n"]), cuts=st.lists(st.integers(1, 99), max_size=4), size=st.integers(1, 9)
)
def test_blank_lines_separate_documents_however_the_file_is_cut(tmp_path_factory, read, lines, end, cuts, size):
    path = tmp_path_factory.mktemp("blocks") / "a.txt"
    text = "\n".join(lines) + end
    path.write_bytes(text.encode())
    edges = [0, *sorted({cut % max(path.stat().st_size, 1) for cut in cuts} - {0}), None]
    result = read(path, document="block", block_bytes=size, ranges=list(itertools.pairwise(edges)))
    assert result.texts == blocks_of(text)
    assert result.positions == sorted(set(result.positions))


def test_a_position_is_that_of_the_first_line(tmp_path, read):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n\r\nthree")
    result = read(tmp_path / "a.txt", document="block")
    assert (result.texts, result.positions) == (["one\ntwo", "three"], [0, 17])


def test_a_document_over_the_limit_is_rejected_whole(tmp_path):
    (tmp_path / "a.txt").write_text("aaa\nbbb\nccc\n\nshort\n\n" + "x" * 30 + "\ny\n\nlast\n")
    (source,) = find_inputs([str(tmp_path)])
    blocks = list(read_blocks(source.path, None, ReadOptions(block_bytes=3), max_record_bytes=8))
    assert [text for block in blocks for text in block.texts.to_pylist()] == ["short", "last"]
    assert [entry.detail for block in blocks for entry in block.rejected] == ["12 bytes", "32 bytes"]


def test_a_file_is_one_document(tmp_path, read):
    for name, data in {"a.txt": b"\xef\xbb\xbfone\r\n\r\ntwo\r\n", "b.txt": b"\xff", "c.txt": b""}.items():
        (tmp_path / name).write_bytes(data)
    result = read(tmp_path, document="file")
    assert (result.texts, result.rejected, result.blank) == (["one\n\ntwo"], {"not UTF-8": 1}, 1)


@given(data=st.binary(max_size=60), cut=st.integers(1, 60), size=st.integers(1, 20))
def test_raw_lines_are_those_of_the_file_byte_by_byte(tmp_path_factory, read, data, cut, size):
    path = tmp_path_factory.mktemp("raw") / "a.txt"
    path.write_bytes(b"begin\n\r\n" + data)
    result = read(path, raw=True, block_bytes=size, ranges=[(0, cut), (cut, None)])
    assert result.texts == [line.removesuffix(b"\n") for line in io.BytesIO(path.read_bytes())]
    assert (result.blank, result.rejected) == (0, {})


def test_only_lines_of_text_are_read_raw(tmp_path, read):
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(CorpusError, match="jsonl with document line cannot be read raw"):
        read(tmp_path / "a.jsonl", raw=True)
    with pytest.raises(CorpusError, match="text with document block cannot be read raw"):
        read(tmp_path / "a.txt", raw=True, document="block")


def test_standard_input_is_read_once_from_front_to_back(read, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"one\ntwo"))))
    result = read("-", block_bytes=2)
    assert (result.texts, result.positions) == (["one", "two"], [0, 4])


@pytest.mark.parametrize(
    ("name", "position", "place"),
    [
        ("a.jsonl", 3, r"a\.jsonl:2: record at byte 3"),
        ("a.jsonl.gz", 3, r"a\.jsonl\.gz: line 4 of the unpacked text"),
        ("a.parquet", 7, r"a\.parquet: row 7"),
        ("a.csv", 5, r"a\.csv: record 5"),
    ],
)
def test_a_place_is_told_in_words(tmp_path, name, position, place):
    (tmp_path / "a.jsonl").write_bytes(b"{}\n{}\n")
    (tmp_path / "a.csv").write_bytes(b"text\n")
    (tmp_path / "a.jsonl.gz").write_bytes(b"\x1f\x8b")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (source,) = find_inputs([str(tmp_path / name)])
    assert re.fullmatch(f".*{place}", describe_position(source, position))
