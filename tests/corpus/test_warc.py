"""Web archives, made here byte by byte: what is text is read, everything else is counted, damage ends a file."""

from __future__ import annotations

import bz2
import gzip
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.corpus.warc_files import read_warc
from kexue_train.foundation.errors import DamagedInputError, ResourceError


def record(kind, content, media="text/plain", **headers):
    lines = [b"WARC/1.0", f"WARC-Type: {kind}".encode(), b"WARC-Date: 2026-11-30T00:00:00Z"]
    lines += [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
    lines += [f"Content-Type: {media}".encode(), f"Content-Length: {len(content)}".encode()]
    return b"\r\n".join([*lines, b"", content, b"", b""])


def wet(number, text, language="eng"):
    return record(
        "conversion",
        text.encode(),
        WARC_Target_URI=f"https://x.org/{number}",
        WARC_Record_ID=f"<urn:uuid:{number}>",
        WARC_Identified_Content_Language=language,
    )


def response(media, body, more=""):
    message = f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\n{more}\r\n".encode() + body
    return record("response", message, "application/http; msgtype=response")


INFO = record("warcinfo", b"isPartOf: CC-MAIN-2026-48\r\n", "application/warc-fields")
PAGES = [INFO, *(wet(i, f"text {i}\nsecond line {i * 7919 % 1000}") for i in range(20))]
TEXTS = [f"text {i}\nsecond line {i * 7919 % 1000}" for i in range(20)]


def pack_members(records):
    return b"".join(gzip.compress(entry) for entry in records)


def read_file(path, **options):
    (source,) = find_inputs([str(path)])
    texts, positions, extras, rejected, left_out, is_damaged = [], [], [], [], Counter(), False
    try:
        for block in read_records(source, ReadOptions(**options)):
            texts += block.texts.to_pylist()
            positions += block.positions.tolist()
            extras += block.extras.to_pylist() if block.extras is not None else []
            rejected += [(entry.position, entry.reason) for entry in block.rejected]
            left_out.update(block.left_out)
    except DamagedInputError:
        is_damaged = True
    return texts, positions, extras, rejected, left_out, is_damaged


@pytest.mark.parametrize(
    ("name", "pack"),
    [("a.warc.wet.gz", pack_members), ("a.wet", b"".join), ("a.wet.bz2", lambda r: bz2.compress(b"".join(r)))],
)
def test_a_wet_file_gives_its_texts_with_address_and_language(tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(PAGES))
    texts, positions, extras, rejected, left_out, is_damaged = read_file(tmp_path / name, keep=("url", "language"))
    assert (texts, positions) == (TEXTS, list(range(1, 21)))
    assert extras[3] == b'["https://x.org/3","eng"]'
    assert (rejected, left_out, is_damaged) == ([], {"web record of type warcinfo": 1}, False)
    assert find_inputs([str(tmp_path)])[0].format == "warc"


def test_what_is_no_text_is_counted_by_kind(tmp_path):
    page = b"<html><p>text</p></html>"
    chunked = b"5\r\nplain\r\n6\r\n words\r\n0\r\n\r\n"
    records = [
        record("request", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
        response("text/html; charset=utf-8", page),
        response("text/plain", b"plain words"),
        response("text/plain", chunked, "Transfer-Encoding: chunked\r\n"),
        response("text/plain", gzip.compress(b"packed words"), "Content-Encoding: gzip\r\n"),
        response("image/png", b"\x89PNG\r\n\r\n"),
        record("metadata", b"a: b\r\n", "application/warc-fields"),
        record("strange", b""),
        wet(8, " \n"),
        record("conversion", "café".encode("latin-1")),
        wet(10, "with a \0"),
    ]
    (tmp_path / "a.warc.gz").write_bytes(pack_members(records))
    texts, positions, _, rejected, left_out, is_damaged = read_file(tmp_path / "a.warc.gz")
    assert texts == ["plain words", "plain words", "packed words"]
    assert positions == [2, 3, 4]
    assert rejected == [(1, "web page, not text"), (9, "not UTF-8"), (10, "NUL byte")]
    assert left_out == {
        "web record of type request": 1,
        "web record of other media than text": 1,
        "web record of type metadata": 1,
        "web record of type unknown": 1,
    }
    assert not is_damaged


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_anywhere_gives_the_whole_records_before(tmp_path, packed):
    whole = pack_members(PAGES) if packed else b"".join(PAGES)
    ends = {0}
    for entry in PAGES:
        ends.add(max(ends) + len(gzip.compress(entry) if packed else entry))
    path = tmp_path / ("a.wet.gz" if packed else "a.wet")
    counts = []
    for size in [*range(20, len(whole), 67), *sorted(ends)[1:]]:
        path.write_bytes(whole[:size])
        first = read_file(path, block_bytes=1)
        assert first == read_file(path)
        texts, *_, rejected, _, is_damaged = first
        assert texts == TEXTS[: len(texts)]
        assert not rejected
        is_between = any(size == end or (not packed and 0 < end - size <= 4) for end in ends)
        assert is_damaged != is_between, size
        counts.append((size, len(texts)))
    assert [count for _, count in sorted(counts)] == sorted(count for _, count in counts)
    assert max(counts)[1] == len(TEXTS)


@pytest.mark.parametrize(
    "bad",
    [
        wet(2, "long").replace(b"Content-Length: 4", b"Content-Length: 2"),
        wet(2, "long").replace(b"Content-Length: 4", b"Content-Length: x"),
        wet(2, "long").replace(b"Content-Length: 4", b"Content-Length: -4"),
        wet(2, "long").replace(b"Content-Length: 4\r\n", b""),
        wet(2, "long").replace(b"WARC/1.0", b"WHAT/1.0"),
        b"x" * (3 << 20),
        b"WARC/1.0\r\n" + b"a: b\r\n" * 500_000,
    ],
    ids=["short", "letters", "negative", "missing", "magic", "garbage", "headers"],
)
def test_a_broken_record_is_damage_after_the_records_before(tmp_path, bad):
    (tmp_path / "a.wet").write_bytes(wet(0, "zero") + wet(1, "one") + bad + wet(3, "three"))
    texts, *_, is_damaged = read_file(tmp_path / "a.wet")
    assert texts[:2] == ["zero", "one"]
    assert "three" not in texts
    assert is_damaged


def test_a_record_over_the_limit_is_rejected_as_it_comes(tmp_path):
    (tmp_path / "a.wet").write_bytes(wet(0, "x" * 300_000) + wet(1, "one"))
    (block,) = read_warc(str(tmp_path / "a.wet"), None, ReadOptions(), max_record_bytes=1000)
    assert block.texts.to_pylist() == ["one"]
    assert [(entry.position, len(entry.raw)) for entry in block.rejected] == [(0, 65536)]


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1), max_size=5),
    block_bytes=st.integers(1, 200),
)
def test_any_texts_come_back_in_any_blocks(tmp_path_factory, texts, block_bytes):
    path = tmp_path_factory.mktemp("warc") / "a.wet.gz"
    path.write_bytes(pack_members([INFO, *(wet(i, text) for i, text in enumerate(texts))]))
    expected = [text.removesuffix("\n") for text in texts if text.strip()]
    assert read_file(path, block_bytes=block_bytes)[0] == expected


def test_without_the_library_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "warcio.archiveiterator", None)
    (tmp_path / "a.wet").write_bytes(INFO)
    with pytest.raises(ResourceError, match=r"pip install 'kexue_train\[web\]'"):
        read_file(tmp_path / "a.wet")
