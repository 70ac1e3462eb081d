"""A file that is plainly something else than its name says is refused, and the message names what it is."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile

import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.signatures import find_encoding, find_magic
from kexue_train.foundation.errors import CorpusError
from tests.corpus.written_formats import PACKERS

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"1" * 64 + b"\nsize 146946961\n"
POINTERS = {
    "git lfs pull": LFS,
    "git xet checkout": b"# xet version 0\nfilesize = 5\nhash = '00'\n",
    "git annex get": b"/annex/objects/SHA256E-s5--00.txt\n",
    "web server": b"404: Not Found",
}
NAMES = ["a.txt", "a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.arrow", "a"]
PROSE = {
    "English": "The river rose.\nBy noon the bridge was under water.\n",
    "Chinese": "天气很好。\n一二三，上海。\n" * 9,
    "Cyrillic": "Река поднялась.\nК полудню мост был под водой.\n",
    "hiragana": "あいうえお\nかきくけこ\nさしすせそ\n",
    "Thai": "สวัสดี\nชาวโลก\n",
}


@pytest.mark.parametrize("name", [*NAMES, *(f"a.jsonl.{suffix}" for suffix in PACKERS)])
@pytest.mark.parametrize("remedy", POINTERS)
def test_what_only_stands_for_the_data_is_named_under_any_name(tmp_path, name, remedy):
    (tmp_path / name).write_bytes(POINTERS[remedy])
    with pytest.raises(CorpusError, match=remedy):
        find_inputs([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'{"text": "a"}\n', "plain text; take the suffix"),
        (b"<html>", "a web page"),
        (b"\x25\xb5\x2f\xfd", "zstd data"),
    ],
)
def test_what_is_not_compressed_as_its_name_says_is_named(tmp_path, data, name):
    (tmp_path / "a.jsonl.zst").write_bytes(data)
    with pytest.raises(CorpusError, match=f"the name says zstd, but the file is {name}"):
        find_inputs([str(tmp_path / "a.jsonl.zst")])


def test_a_packed_pointer_is_one_too(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LFS))
    with pytest.raises(CorpusError, match="git lfs pull"):
        find_inputs([str(tmp_path / "a.jsonl.gz")])


def test_a_link_that_git_wrote_as_text_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"../shared/corpus.txt")
    with pytest.raises(CorpusError, match="is a symbolic link to"):
        find_inputs([str(tmp_path / "a.txt")])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet", "a.arrow", "a.json"])
def test_a_web_page_is_no_data(tmp_path, name):
    (tmp_path / name).write_bytes(b"\n<!DOCTYPE html>\n<html>404</html>")
    with pytest.raises(CorpusError, match="a web page"):
        find_inputs([str(tmp_path / name)])


def test_a_web_page_named_text_may_be_meant(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes(b"<html>text</html>\n")
    assert find_inputs([str(tmp_path / "a.txt")])
    assert "a web page" in caplog.text


@pytest.mark.parametrize("encoding", ["UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize("script", PROSE)
def test_encodings_are_named_with_and_without_a_mark(tmp_path, encoding, script):
    data = PROSE[script].encode(encoding)
    mark = "\ufeff".encode(encoding)
    assert find_encoding(data).remedy == f"convert it with: iconv -f {encoding} -t UTF-8"
    assert find_encoding(data[:-2]).remedy == f"convert it with: iconv -f {encoding} -t UTF-8"
    assert find_encoding(mark + data).name == f"{encoding[:6]} text"
    for suffix in (".txt", ".csv", ".jsonl"):
        (tmp_path / f"a{suffix}.gz").write_bytes(gzip.compress(data))
        with pytest.raises(CorpusError, match=f"{encoding[:6]} text without a byte order mark"):
            find_inputs([str(tmp_path / f"a{suffix}.gz")])


@pytest.mark.parametrize("script", PROSE)
def test_text_in_utf_8_is_text(script):
    for data in (PROSE[script].encode(), PROSE[script].encode("utf-8-sig"), PROSE[script].encode() * 40 + b"\0\n"):
        assert find_encoding(data) is None
        assert find_magic(data) is None


def _tar():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (_tar(), "tar data"),
        (b"PK\x03\x04rest", "zip data"),
        (b"\x02\x21\x4c\x18rest", "lz4 data"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (bytes(5000), "binary data"),
        (struct.pack("<999d", *range(999)), "binary data"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_binary_data_under_the_name_of_text_is_named(tmp_path, data, name, suffix):
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix[1:]](data) if suffix else data)
    with pytest.raises(CorpusError, match=f"is to be read as text, but the file is {name}"):
        find_inputs([str(path)])


def test_lines_of_any_bytes_are_only_warned_of(tmp_path, caplog):
    (tmp_path / "a.txt").write_bytes("a\nb\n".encode("utf-16"))
    assert find_inputs([str(tmp_path / "a.txt")], any_bytes=True)
    assert "seems to be UTF-16 text; its lines are taken as they are" in caplog.text
    (tmp_path / "b.jsonl").write_bytes(b"{}\n")
    with pytest.raises(CorpusError, match="UTF-16"):  # not all are lines of text
        find_inputs([str(tmp_path)], any_bytes=True)


def test_a_mark_alone_makes_no_utf_16(tmp_path):
    assert find_encoding(b"\xff\xfeabc\n\xff\xfedef\nplain\n") is None
