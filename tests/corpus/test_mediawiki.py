"""XML dumps of a wiki, made here: articles as plain text, everything else counted."""

from __future__ import annotations

import bz2
from collections import Counter
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.corpus import mediawiki
from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import describe_position, read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.foundation.errors import CorpusError, DamagedInputError

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="zh">
  <siteinfo><sitename>W</sitename><base>https://zh.x.org/wiki/Main_Page</base><namespaces>
  <namespace key="0" case="first-letter" /><namespace key="6">文件</namespace><namespace key="14">分类</namespace>
  </namespaces></siteinfo>
"""
TAIL = "</mediawiki>\n"


def page(number, title, text, *, ns=0, redirect=False, model="wikitext", older=()):
    revisions = "".join(
        f"<revision><id>{number}7</id><model>{model}</model><text bytes='1'>{escape(part)}</text></revision>"
        for part in (*older, text)
    )
    target = '<redirect title="X" />' if redirect else ""
    return f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{number}</id>{target}{revisions}</page>\n"


def write(tmp_path, pages, name="w-pages-articles.xml.bz2"):
    """Write a dump; under a name of bz2 in streams of two pages each, as multistream dumps are."""
    parts = [HEAD, *("".join(pages[i : i + 2]) for i in range(0, len(pages), 2)), TAIL]
    data = [part.encode() for part in parts]
    (tmp_path / name).write_bytes(b"".join(map(bz2.compress, data) if name.endswith("bz2") else data))
    return tmp_path / name


def read_dump(path, **options):
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


def plain(tmp_path, markup):
    return read_dump(write(tmp_path, [page(1, "t", markup)], "a.xml"))[0][0]


@pytest.mark.parametrize("name", ["w.xml.bz2", "w.xml-p1p99.bz2", "w.xml", "w.mediawiki"])
def test_articles_are_read_and_everything_else_is_counted(tmp_path, name):
    pages = [
        page(1, "A b & c", "One & '''two'''."),
        page(2, "Old name", "#REDIRECT [[A]]", redirect=True),
        page(3, "Talk:A", "talk", ns=1),
        page(4, "Data", "{}", model="json"),
        page(5, "Empty", "{{stub}}"),
        page(6, "城市", "城市是[[人]]住的地方。", older=["old"]),
    ]
    path = write(tmp_path, pages, name)
    texts, positions, extras, rejected, left_out, is_damaged = read_dump(tmp_path, keep=("title", "url", "language"))
    assert texts == ["One & two.", "城市是人住的地方。"]
    assert positions == [0, 5]
    assert extras[0] == b'["A b & c","https://zh.x.org/wiki/A_b_%26_c","zh"]'
    assert left_out == {
        "redirect of a wiki": 1,
        "wiki page that is no article": 1,
        "wiki page without markup": 1,
        "page without text": 1,
    }
    assert (rejected, is_damaged) == ([], False)
    (source,) = find_inputs([str(path)])
    assert describe_position(source, 5) == f"{path}: page 5"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("A [[b|c]] and [[d]] [[:Category:e]].", "A c and d Category:e."),
        ("A<ref>note</ref>, b<ref name=x /> c<!-- no -->.", "A, b c."),
        ("[[File:a.jpg|thumb|A [[b]]]]\n[[文件:b.jpg]]\nText.\n[[分类:C]]\n[[de:D]]", "Text."),
        ("{{Infobox|a={{b}}|c=d}}\nText {{lang|la|x}}here.", "Text here."),
        ('Before.\n{| class="x"\n! a\n|-\n| b\n|}\nAfter.', "Before.\n\nAfter."),
        ("* one\n* two\n# three", "one\ntwo\nthree"),
        ("Lead.\n== A ==\n=== B ===\ntext\n== C ==\n{{x}}\n== D ==\n", "Lead.\n\nA\n\nB\n\ntext"),
        ("x<br />y <math>z</math>&nbsp;&amp; [http://a.b link] http://c.d", "x\ny  & link"),
        ("-{zh-hans:软件; zh-hant:軟體}-和-{字}-", "软件和字"),
        ("__NOTOC__''i'' '''b''' <small>s</small>", "i b s"),
        ("open {{never [[closed <b>bold", "open {{never [[closed <b>bold"),
    ],
)
def test_markup_becomes_plain_text(tmp_path, markup, text):
    assert plain(tmp_path, markup) == text


PAGES = [page(i, f"t{i}", f"text {i} [[a|{i * 7919 % 1000}]]") for i in range(12)]


@pytest.mark.parametrize("name", ["a.mediawiki", "a.mediawiki.bz2"])
def test_a_dump_cut_anywhere_gives_the_whole_pages_before(tmp_path, name):
    whole = write(tmp_path, PAGES, name).read_bytes()
    texts, counts = read_dump(tmp_path / name)[0], []
    assert len(texts) == 12
    for size in [*range(60, len(whole) - 2, 61), len(whole) - 3]:
        (tmp_path / name).write_bytes(whole[:size])
        first = read_dump(tmp_path / name, block_bytes=1)
        assert first == read_dump(tmp_path / name)
        assert first[0] == texts[: len(first[0])]
        assert first[-1]
        counts.append(len(first[0]))
    assert counts == sorted(counts)
    assert counts[-1] == 12


def test_a_page_over_the_limit_is_rejected_as_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(mediawiki, "MAX_MARKUP_CHARS", 1 << 20)
    path = write(tmp_path, [page(0, "long", "x" * (1 << 20) + "y"), page(1, "t", "text")], "a.xml")
    texts, positions, _, rejected, _, _ = read_dump(path)
    assert (texts, positions) == (["text"], [1])
    assert rejected == [(0, "wiki page longer than 1 Mi characters")]


def test_a_page_that_would_take_the_parser_hours_is_rejected(tmp_path):
    pages = [page(0, "open", "<b>" * 50_000), page(1, "t", "text<br/>" + "<ref>a</ref>" * 5000)]
    pages.append(page(2, "links", "[http://a " * 4000))
    texts, _, _, rejected, _, _ = read_dump(write(tmp_path, pages, "a.xml"))
    assert (texts, rejected) == (["text"], [(0, "wiki page of broken markup"), (2, "wiki page of broken markup")])


def test_entities_and_tags_without_end_are_refused(tmp_path):
    (tmp_path / "a.mediawiki").write_text(f'<!DOCTYPE m [<!ENTITY a "aaaa">]>{HEAD}{page(1, "t", "x")}{TAIL}')
    with pytest.raises(CorpusError, match="has a document type"):
        read_dump(tmp_path / "a.mediawiki")
    (tmp_path / "b.xml").write_text(HEAD + PAGES[0] + "<page " + "x" * (40 << 20))
    assert read_dump(tmp_path / "b.xml")[::5] == (["text 0 0"], True)


@given(
    texts=st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=9), max_size=5),
    block_bytes=st.integers(1, 99),
)
def test_plain_texts_come_back_in_any_blocks(tmp_path_factory, texts, block_bytes):
    path = write(tmp_path_factory.mktemp("wiki"), [page(i, f"t{i}", text) for i, text in enumerate(texts)])
    assert read_dump(path, block_bytes=block_bytes)[0] == texts
