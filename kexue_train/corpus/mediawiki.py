"""Reads XML dumps of a wiki, such as ``zhwiki-…-pages-articles-multistream.xml.bz2``: one record per article."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote
from xml.parsers import expat

from kexue_train.corpus.builder import BlockBuilder, gather_blocks
from kexue_train.corpus.records import ReadOptions, RecordBlock, reject
from kexue_train.corpus.streams import ByteStream, open_stream
from kexue_train.corpus.wiki_markup import CATEGORY_NAMES, FILE_NAMES, load_parser, to_plain
from kexue_train.corpus.wikiextractor import EMPTY_PAGE
from kexue_train.foundation.errors import CorpusError, DamagedInputError

MAX_MARKUP_CHARS = 8 * 2**20
"""A longer page is rejected; wikis allow 2 MiB."""
_MAX_OPEN_TAGS, _MAX_OPEN_BRACKETS = 3000, 200
"""A page with more that are not closed is rejected: the parser's time grows with their square, or faster."""
_CHUNK_BYTES = 1 << 18
_MAX_TAG_BYTES = 16 * 2**20
_FILES, _CATEGORIES = "6", "14"
"""Keys of two namespaces."""
_FIELDS = {
    ("mediawiki", "page", "title"): "title",
    ("mediawiki", "page", "ns"): "ns",
    ("mediawiki", "page", "id"): "id",
    ("mediawiki", "page", "revision", "model"): "model",
    ("mediawiki", "page", "revision", "text"): "text",
    ("mediawiki", "siteinfo", "base"): "base",
    ("mediawiki", "siteinfo", "namespaces", "namespace"): "namespace",
}
"""Way to an element -> what it is called here."""


@dataclass(slots=True)
class _Page:
    """A page as it comes in; of several revisions the last one in the file counts."""

    values: dict[str, str] = field(default_factory=dict)
    is_redirect: bool = False
    is_too_long: bool = False


def read_mediawiki(path: str, compression: str | None, options: ReadOptions) -> Iterator[RecordBlock]:
    """Yield the articles; positions are the numbers of pages from 0. Keys: text, title, id, url, language.

    Raises:
        DamagedInputError: If the dump is cut off or no XML, after the pages before that.
        CorpusError: If it has a document type, as no dump has: entities could make it grow without end.
        ResourceError: If the library that parses markup is missing.
    """
    builder, parse = BlockBuilder(options), load_parser(path)
    with open_stream(path, compression) as stream:
        steps = _fill(builder, _Dump(path), stream, parse)
        yield from gather_blocks(steps, builder, options.block_bytes)


def _fill(builder: BlockBuilder, dump: _Dump, stream: ByteStream, parse: Callable[[str], Any]) -> Iterator[None]:
    for number, page in enumerate(dump.iter_pages(stream)):
        if reason := _why_left_out(page):
            builder.leave_out(reason)
        elif page.is_too_long:
            detail = f"'{page.values.get('title', '')}'"
            builder.reject(reject(number, f"wiki page longer than {MAX_MARKUP_CHARS >> 20} Mi characters", detail, b""))
        elif _is_broken(page.values.get("text", "")):
            detail = f"'{page.values.get('title', '')}': has too many tags or brackets that are not closed"
            builder.reject(reject(number, "wiki page of broken markup", detail, b""))
        else:
            text = to_plain(parse(page.values.get("text", "")), dump.dropped_namespaces)
            if text:
                builder.add(number, dump.describe(page) | {"text": text})
            else:
                builder.leave_out(EMPTY_PAGE)
        yield


def _is_broken(markup: str) -> bool:
    open_tags = markup.count("<") - 2 * markup.count("</") - markup.count("/>") - markup.count("<!--")
    return open_tags > _MAX_OPEN_TAGS or markup.count("[") - markup.count("]") > _MAX_OPEN_BRACKETS


def _why_left_out(page: _Page) -> str | None:
    if page.values.get("ns", "0").strip() != "0":
        return "wiki page that is no article"
    if page.is_redirect:
        return "redirect of a wiki"
    if page.values.get("model", "wikitext").strip() != "wikitext":
        return "wiki page without markup"
    return None


class _Dump:
    """What the parser of XML has met so far."""

    def __init__(self, path: str) -> None:
        self.dropped_namespaces = {*FILE_NAMES, *CATEGORY_NAMES}
        """Names in lower case, see ``wiki_markup.to_plain``."""
        self._path = path
        self._done: deque[_Page] = deque()
        self._page = _Page()
        self._way: list[str] = []
        self._name: str | None = None
        self._pieces: list[str] = []
        self._num_chars = 0
        self._namespace = ""
        self._base, self._language = "", ""

    def describe(self, page: _Page) -> dict[str, str]:
        """Return the values of a page that can be kept."""
        title = page.values.get("title", "")
        record = {"title": title, "id": page.values.get("id", "")}
        if self._base:
            record["url"] = f"{self._base}/{quote(title.replace(' ', '_'), safe='/:(),!')}"
        if self._language:
            record["language"] = self._language
        return record

    def iter_pages(self, stream: ByteStream) -> Iterator[_Page]:
        """Yield the pages of the dump that ``stream`` holds."""
        parser = expat.ParserCreate()
        parser.buffer_text, parser.buffer_size = True, _CHUNK_BYTES
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = self._add, self._refuse_doctype
        num_bytes, is_last = 0, False
        while not is_last:
            data = stream.read(_CHUNK_BYTES)
            num_bytes, is_last = num_bytes + len(data), not data
            if is_last and not num_bytes:
                return
            error = None
            try:
                parser.Parse(data, is_last)
            except expat.ExpatError as found:
                error = str(found)
            if num_bytes - parser.CurrentByteIndex > _MAX_TAG_BYTES:
                error = error or "a tag without end"
            while self._done:
                yield self._done.popleft()
            if error:
                raise DamagedInputError(
                    f"{self._path}: is cut off or damaged near byte {num_bytes}, unpacked ({error}); fetch or make the "
                    "file again, or leave it out"
                )

    def _refuse_doctype(self, *_: object) -> None:
        raise CorpusError(f"{self._path}: has a document type, which no dump of a wiki has; leave the file out")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._way.append(name)
        if len(self._way) > 1000:
            raise CorpusError(f"{self._path}: has elements inside of each other 1,000 deep; this is no dump of a wiki")
        if name == "mediawiki":
            self._language = attributes.get("xml:lang", "")
        elif name == "page":
            self._page = _Page()
        elif name == "redirect":
            self._page.is_redirect = True
        self._name = _FIELDS.get(tuple(self._way)) if len(self._way) < 6 else None
        self._pieces, self._num_chars = [], 0
        if self._name == "text":
            self._page.is_too_long = False
        self._namespace = attributes.get("key", "")

    def _add(self, text: str) -> None:
        if self._name is None:
            return
        self._num_chars += len(text)
        if self._num_chars > MAX_MARKUP_CHARS:
            self._page.is_too_long, self._pieces = True, []
        else:
            self._pieces.append(text)

    def _end(self, name: str) -> None:
        value = "".join(self._pieces)
        if self._name == "base":
            self._base = re.sub(r"/[^/]*$", "", value.strip())
        elif self._name == "namespace" and self._namespace in (_FILES, _CATEGORIES):
            self.dropped_namespaces.add(value.strip().lower())
        elif self._name is not None:
            self._page.values[self._name] = value
        self._name, self._pieces = None, []
        self._way.pop()
        if name == "page":
            self._done.append(self._page)
