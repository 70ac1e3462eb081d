"""Reads what wikiextractor writes: one record per ``<doc id=… url=… title=…>``."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kexue_train.corpus.builder import BlockBuilder, gather_blocks
from kexue_train.corpus.records import MAX_RECORD_BYTES, ReadOptions, RecordBlock, Rejected, not_utf8, reject
from kexue_train.corpus.streams import BOM, open_stream
from kexue_train.corpus.text import GrowingText, Line, iter_lines
from kexue_train.foundation.errors import DamagedInputError

_OPENING, _CLOSING = b"<doc ", b"</doc>"
_HEADER = re.compile(r'<doc((?: \w+="[^"]*")*?)(?: title="(.*)")?>\s*')  # a title may hold quotation marks
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_ESCAPES = (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"))
"""What wikiextractor writes for signs of HTML in a text."""
EMPTY_PAGE = "page without text"
"""The reason of a page that holds nothing, or its title alone."""


def read_wikiextractor(
    path: str, compression: str | None, options: ReadOptions, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[RecordBlock]:
    """Yield the pages; positions are their numbers from 0. The keys are ``text`` and the attributes of ``<doc>``.

    Raises:
        DamagedInputError: If the file ends within a page.
    """
    builder = BlockBuilder(options)
    with open_stream(path, compression) as stream:
        lines = iter_lines(stream, 0, options.block_bytes, max_record_bytes)
        yield from gather_blocks(_fill(path, builder, lines, max_record_bytes), builder, options.block_bytes)


def _fill(path: str, builder: BlockBuilder, lines: Iterator[Line], limit: int) -> Iterator[None]:
    number, page, header, is_outside = 0, None, b"", False
    for line in lines:
        data = line.data.removeprefix(BOM) if not line.number else line.data
        if data.startswith(_OPENING) or (data and _OPENING.startswith(data)):  # the latter if it is cut off
            if page:
                builder.reject(reject(number, "page that is not closed", "another one begins within it", header))
                number += 1
            page, header, is_outside = GrowingText(number, limit), data, False
        elif page and data.rstrip() == _CLOSING:
            _add(builder, number, header, page.finish())
            number, page = number + 1, None
            yield
        elif page:
            page.append(data, line.num_bytes)
        elif not (line.is_blank or is_outside):  # lines that follow each other count as one record
            builder.reject(reject(number, "text outside of a page", "no <doc …> stands before it", data))
            number, is_outside = number + 1, True
            yield
    if page:
        raise DamagedInputError(
            f"{path}: ends within document {number}, which has no </doc>; fetch or make the file again, or leave it out"
        )


def _add(builder: BlockBuilder, number: int, header: bytes, text: bytes | Rejected) -> None:
    if isinstance(text, bytes):
        text = not_utf8(number, header) or text
    if isinstance(text, Rejected):
        builder.reject(text)
        return
    match = _HEADER.fullmatch(header.decode("utf-8"))
    if match is None:
        builder.reject(reject(number, "malformed <doc>", 'expected <doc id="…" url="…" title="…">', header))
        return
    record = dict(_ATTRIBUTE.findall(match[1]))
    if match[2] is not None:
        record["title"] = match[2]
    body = text.decode("utf-8")
    for escape, sign in _ESCAPES:
        body = body.replace(escape, sign)
    body = body.strip("\n")
    if not body.strip() or body.strip() == record.get("title", "").strip():
        builder.leave_out(EMPTY_PAGE)
    else:
        builder.add(number, record | {"text": body})
