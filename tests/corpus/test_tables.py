from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.delimited import read_csv
from kexue_train.corpus.records import ReadOptions, Rejected
from kexue_train.foundation.errors import CorpusError

FIELDS = st.text(st.sampled_from('ab",\n\r中'), max_size=6)


@given(rows=st.lists(st.tuples(FIELDS, FIELDS), max_size=8), size=st.integers(1, 20))
def test_rows_are_those_of_the_csv_module(tmp_path_factory, read, rows, size):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([("id", "text"), *rows])
    path.write_bytes(out.getvalue().encode())
    result = read(path, block_bytes=size)
    assert result.texts == [text for _, text in rows if text.strip()]
    assert result.rejected == {}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_line_end_ends_a_row(tmp_path, read, end):
    (tmp_path / "a.csv").write_bytes(f"\ufefftext,b{end}x,1{end}{end}y,2".encode())
    result = read(tmp_path / "a.csv")
    assert (result.texts, result.positions, result.blank) == (["x", "y"], [0, 2], 1)


def test_rows_that_cannot_be_used_are_rejected_with_what_is_wrong(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,b\nx\nx,1,2\nb\xffd,1\ngood,1\n"open,1\nx,2\n')
    (block,) = read_csv(str(path), None, ReadOptions())
    assert block.texts.to_pylist() == ["good"]
    assert block.rejected == [
        Rejected(0, "wrong number of fields", "1 fields, the header has 2", b"x\n"),
        Rejected(1, "wrong number of fields", "3 fields, the header has 2", b"x,1,2\n"),
        Rejected(2, "not UTF-8", "byte 0xff at byte 1 of the record: invalid start byte", b"b\xffd,1\n"),
        Rejected(
            4, "unclosed quote", "a quotation mark takes in all 2 lines to the end of the file", b'"open,1\nx,2\n'
        ),
    ]


MALFORMED = {  # what stands between good rows: how many records it counts as
    "backslashes": ('2,"He said \\"no\\";\nthen 3,left, quietly"\n', 1),
    "backslashes at the end": ('2,"He said \\"no\\""\n', 1),
    "backslashes and commas": ('2,"a \\", b"\n', 1),
    "a row within": ('2,"said \\"no\\"\n3,a row\nthen left"\n', 1),
    "a quote that is left open": ('2,"open\n3,"fine"\n', 1),
    "a quote in mid-field": ('2,5" wide\n', 1),
    "a space before the quote": ('2, "a"\n', 1),
    "quotes that are not doubled": ('2,"say "no" twice"\n', 1),
    "fewer fields": ("2\n", 1),
    "more fields": ("2,a,b\n", 1),
}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("block_bytes", [1, 1000])
def test_malformed_rows_are_rejected_and_give_no_others(tmp_path, read, case, block_bytes):
    rows, num_rejected = MALFORMED[case]
    (tmp_path / "a.csv").write_text(f'id,text\n0,"good ""one"""\n{rows}9,"good\nlast"\n')
    result = read(tmp_path / "a.csv", block_bytes=block_bytes)
    assert (result.texts, result.rejected.total()) == (['good "one"', "good\nlast"], num_rejected)


def test_what_may_belong_to_a_malformed_row_is_rejected_with_it(tmp_path, read):
    (tmp_path / "a.csv").write_text('id,text\n1,"say "no" then\n2,a row within\nleft"\n3,good\n4,"open" b\n5,or not\n')
    result = read(tmp_path / "a.csv")
    assert (result.texts, result.rejected) == (["good"], {"malformed quoting": 2})


def test_malformed_quoting_is_told_with_the_sign_before_it(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'text\n"a \\" b"\n"a " b"\n')
    (block,) = read_csv(str(path), None, ReadOptions())
    detail = "a quotation mark {} that is not doubled; 1 lines"
    assert block.rejected == [
        Rejected(0, "malformed quoting", detail.format("after a backslash"), b'"a \\" b"\n'),
        Rejected(1, "malformed quoting", detail.format("within a field"), b'"a " b"\n'),
    ]


@pytest.mark.parametrize("data", [b'"text\n', b'te"xt,b\n', b'"te"xt\nx\n'])
def test_a_header_with_malformed_quoting_is_an_error(tmp_path, read, data):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(CorpusError, match=r"the header is (malformed quoting|unclosed quote)"):
        read(tmp_path / "a.csv")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "a.jsonl", "a.json"])
def test_a_byte_order_mark_alone_is_nothing(tmp_path, read, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf")
    assert (read(tmp_path / name).texts, read(tmp_path / name).rejected) == ([], {})


@pytest.mark.parametrize("block_bytes", [1, 10, 1000])
def test_a_row_over_the_limit_is_rejected_and_the_next_one_is_read(tmp_path, block_bytes):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,b\n" + b'"' + b"line, of \n" * 9 + b'",1\nok,1\n' + b"x" * 40 + b",1\nfine,1\n")
    blocks = list(read_csv(str(path), None, ReadOptions(block_bytes=block_bytes), max_record_bytes=25))
    assert [text for block in blocks for text in block.texts.to_pylist()] == ["ok", "fine"]
    found = [(entry.position, entry.detail) for block in blocks for entry in block.rejected]
    assert found == [(0, "95 bytes"), (2, "42 bytes")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_header_that_cannot_be_read_is_an_error(tmp_path, read, name):
    (tmp_path / name).write_bytes(b"te\xffxt\nx\n")
    with pytest.raises(CorpusError, match=r":1: the header is not UTF-8"):
        read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.txt", b"a\n%sb\0\nc\n"),
        ("a.csv", b"text\na\n%sb\0\nc\n"),
        ("a.tsv", b"text\na\n%sb\0\nc\n"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 10_000])
def test_a_record_with_a_nul_is_no_text(tmp_path, read, name, rows, block_bytes):
    (tmp_path / name).write_bytes(rows % (b"long line\n" * 9))
    result = read(tmp_path / name, block_bytes=block_bytes)
    assert (result.texts, result.rejected) == (["a", *["long line"] * 9, "c"], {"NUL byte": 1})


@pytest.mark.parametrize("document", ["block", "file"])
def test_a_document_with_a_nul_is_no_text(tmp_path, read, document):
    (tmp_path / "a.txt").write_bytes(b"some lines\nof text\n\0\n")
    assert read(tmp_path / "a.txt", document=document).rejected == {"NUL byte": 1}


def test_a_tsv_knows_no_quotes(tmp_path, read):
    (tmp_path / "a.tsv").write_bytes(b'a\ttext\n1\t"x\n2\ty"\r\n\n3\n4\tz\t\n\xff\tx\n')
    result = read(tmp_path / "a.tsv")
    assert (result.texts, result.positions, result.blank) == (['"x', 'y"'], [7, 12], 1)
    assert result.rejected == {"wrong number of fields": 2, "not UTF-8": 1}
