"""The records of an input do not depend on how it is cut, compressed or read."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.signatures import find_encoding
from tests.corpus.written_formats import PACKERS, WRITERS

ROWS = st.lists(
    st.fixed_dictionaries({"text": st.sampled_from(["a", "bb " * 9, "中", " ", ""]), "source": st.just("s")})
)
PIECES = {  # what hostile files of these formats are put together from
    "a.txt": [b"a", b"\n", b"\r\n", b"\xff", "中".encode(), b"  ", b"\r"],
    "a.jsonl": [b'{"text":"a"}', b'{"text":1}', b"\n", b"\r\n", b"{", b"\xff", b'{"text":"b","source":{"c":[1]}}'],
    "a.json": [b'{"text":"a,]"}', b'{"text":"\\"[\\\\"}', b",", b"[", b"]", b"1", b" \n", b'"', b"\xff", b"}"],
    "a.csv": [b"a", b",", b'"', b"\n", b"\r\n", b"\r", b'"b""c\nd"', b"\xff", b"\0"],
    "a.tsv": [b"a", b"\t", b'"', b"\n", b"\r\n", b"\xff", b"\0"],
}
LONG = b"source" * 40  # so that NULs are too few for binary data
HEADS = {"a.json": b"[", "a.csv": b"text," + LONG + b"\n", "a.tsv": LONG + b"\ttext\n"}


def edges_of(cuts, units):
    edges = [0, *sorted({cut % units for cut in cuts} - {0}), None]
    return list(itertools.pairwise(edges))


@pytest.mark.parametrize("name", WRITERS)
@given(rows=ROWS, cuts=st.lists(st.integers(1, 10**6), max_size=5), block_bytes=st.integers(1, 99))
def test_what_was_written_comes_back_however_it_is_cut(tmp_path_factory, read, name, rows, cuts, block_bytes):
    path = tmp_path_factory.mktemp("cuts") / name
    path.write_bytes(WRITERS[name](rows))
    keep = () if name == "a.txt" else ("source",)
    (source,) = find_inputs([str(path)])
    result = read(path, keep=keep, block_bytes=block_bytes, ranges=edges_of(cuts, source.units))
    assert result.texts == [row["text"] for row in rows if row["text"].strip()]
    assert result.blank == len(rows) - len(result.texts)
    assert result.extras == [b'["s"]'] * len(result.texts) if keep else not result.extras
    assert result.positions == sorted(set(result.positions))
    assert result == read(path, keep=keep)


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("document", ["line", "block"])
@given(data=st.data(), cuts=st.lists(st.integers(1, 10**6), max_size=5), block_bytes=st.integers(1, 30))
def test_hostile_bytes_give_the_same_however_they_are_cut(
    tmp_path_factory, read, name, document, data, cuts, block_bytes
):
    path = tmp_path_factory.mktemp("cuts") / name
    body = data.draw(st.lists(st.sampled_from(PIECES[name]), max_size=30).map(b"".join))
    path.write_bytes(HEADS.get(name, b"") + body)
    assume(find_encoding(path.read_bytes()) is None)
    (source,) = find_inputs([str(path)])
    ranges = edges_of(cuts, source.units)
    result = read(path, document=document, block_bytes=block_bytes, ranges=ranges, stop_at_damage=True)
    positions = result.positions + result.rejected_positions
    assert len(set(positions)) == len(positions)
    assert result == read(path, document=document, stop_at_damage=True)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("suffix", PACKERS)
def test_every_format_is_read_compressed(tmp_path, read, name, suffix):
    rows = [{"text": f"text {i}", "source": "s"} for i in range(9)]
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(PACKERS[suffix](WRITERS[name](rows)))
    (source,) = find_inputs([str(path)])
    result = read(path)
    assert source.units == 1
    assert result.texts == [row["text"] for row in rows]
    first = 1 if name == "a.tsv" else 0  # its header is a line
    assert result.positions == list(range(first, first + 9))
