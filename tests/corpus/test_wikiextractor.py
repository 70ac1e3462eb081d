"""Files of wikiextractor: pages, empty pages, and what is broken."""

from __future__ import annotations

import bz2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.corpus.wikiextractor import read_wikiextractor


def page(number, title, body):
    return f'<doc id="{number}" url="https://x.org/wiki?curid={number}" title="{title}">\n{title}\n\n{body}\n</doc>\n'


def write(tmp_path, text, name="wiki_00"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_pages_come_with_their_titles_and_addresses(tmp_path, read):
    text = page(12, 'The "A" & b', "Some &lt;b&gt; &amp;amp; text.\n\nMore.") + page(13, "中", "文")
    result = read(write(tmp_path, text), keep=("id", "title", "url"))
    assert result.texts == ['The "A" & b\n\nSome <b> &amp; text.\n\nMore.', "中\n\n文"]
    assert result.positions == [0, 1]
    assert result.extras[1].decode() == '["13","中","https://x.org/wiki?curid=13"]'
    (tmp_path / "wiki_00").unlink()
    (tmp_path / "wiki_01.bz2").write_bytes(bz2.compress(text[:300].encode()) + bz2.compress(text[300:].encode()))
    assert read(tmp_path, keep=("id", "title", "url")) == result


def test_empty_pages_are_counted(tmp_path):
    text = page(1, "Empty", "") + page(2, "Full", "text") + '<doc id="3" url="u" title="None">\n</doc>\n'
    (source,) = find_inputs([str(write(tmp_path, text))])
    (block,) = read_records(source, ReadOptions())
    assert block.texts.to_pylist() == ["Full\n\ntext"]
    assert block.left_out == {"page without text": 2}


def test_what_is_broken_costs_its_page(tmp_path, read):
    text = page(1, "a", "a").encode()
    text += b'<doc id="2" url="u" title="open">\nnever closed\n' + page(3, "b", "b").encode()
    text += b"stray\nlines\n" + page(4, "c", "c\xff").encode("latin-1") + b"<doc what>\nx\n</doc>\n"
    result = read(write(tmp_path, text))
    assert result.texts == ["a\n\na", "b\n\nb"]
    assert dict(zip(result.rejected_positions, result.rejected, strict=True)) == {
        1: "page that is not closed",
        3: "text outside of a page",
        4: "not UTF-8",
        5: "malformed <doc>",
    }


def test_a_page_over_the_limit_is_rejected_as_it_comes(tmp_path):
    path = write(tmp_path, page(1, "long", "x\n" * 500) + page(2, "line", "y" * 1000) + page(3, "short", "z"))
    blocks = list(read_wikiextractor(str(path), None, ReadOptions(block_bytes=64), max_record_bytes=300))
    assert [text for block in blocks for text in block.texts.to_pylist()] == ["short\n\nz"]
    assert [entry.position for block in blocks for entry in block.rejected] == [0, 1]


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_cut_anywhere_gives_the_whole_pages_before(tmp_path, read, packed):
    text = "".join(page(i, f"t{i}", "body " * i) for i in range(12)).encode()
    whole, name = (bz2.compress(text), "a.wikiextractor.bz2") if packed else (text, "a.wikiextractor")
    texts = read(write(tmp_path, whole, name)).texts
    for size in range(30, len(whole) - 9, 37):
        result = read(write(tmp_path, whole[:size], name), stop_at_damage=True, block_bytes=99)
        assert result.texts == texts[: len(result.texts)]
        assert result.damaged == (packed or not text[:size].endswith(b"</doc>\n"))
        assert not result.rejected


PIECES = [b'<doc id="1" url="u" title="t">\n', b"</doc>\n", b"text\n", b"\n", b"\xff\n", b"\r\n", b"<doc \n", b"t"]


@given(body=st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join), block_bytes=st.integers(1, 50))
def test_any_bytes_give_the_same_in_any_blocks(tmp_path_factory, read, body, block_bytes):
    path = write(tmp_path_factory.mktemp("wiki"), PIECES[0] + body)
    result = read(path, block_bytes=block_bytes, stop_at_damage=True)
    assert result == read(path, stop_at_damage=True)
    positions = result.positions + result.rejected_positions
    assert len(set(positions)) == len(positions)
