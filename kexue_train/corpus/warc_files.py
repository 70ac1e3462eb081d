"""Reads the texts of web archives: WET files of Common Crawl, and what is plain text in other WARC files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from kexue_train.corpus.builder import BlockBuilder, gather_blocks
from kexue_train.corpus.forward_stream import ForwardStream
from kexue_train.corpus.records import MAX_RECORD_BYTES, ReadOptions, RecordBlock, Rejected, reject
from kexue_train.corpus.streams import open_stream
from kexue_train.corpus.text import GrowingText
from kexue_train.foundation.errors import ResourceError

_STEP_BYTES = 1 << 16
_HEADER_BYTES = 1 << 20
"""The most that the headers of a record may take."""
_KEYS = {
    "url": "WARC-Target-URI",
    "id": "WARC-Record-ID",
    "date": "WARC-Date",
    "language": "WARC-Identified-Content-Language",
}
"""Key of our records -> header of theirs."""
_DOCUMENTS = ("conversion", "resource", "response")
_OTHERS = ("warcinfo", "request", "metadata", "revisit", "continuation")
_TEXT, _MARKUP = "text/plain", ("text/html", "application/xhtml+xml")


def read_warc(
    path: str, compression: str | None, options: ReadOptions, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[RecordBlock]:
    """Yield the records of plain text; positions are their numbers from 0 among all. Keys: ``text`` and ``_KEYS``.

    Raises:
        DamagedInputError: If a record is cut off, longer than it says, or none.
        ResourceError: If the library is missing.
    """
    builder = BlockBuilder(options)
    with open_stream(path, compression) as stream:
        steps = _fill(builder, ForwardStream(path, stream), max_record_bytes)
        yield from gather_blocks(steps, builder, options.block_bytes)


def _fill(builder: BlockBuilder, stream: ForwardStream, limit: int) -> Iterator[None]:
    for number, record in enumerate(_iter_records(stream)):
        reason, text = _why_left_out(record), GrowingText(number, limit)
        if reason is None:
            _drain(record.content_stream(), stream, text)
        _drain(record.raw_stream, stream)
        if record.raw_stream.limit:
            raise stream.damaged("a record is cut off")
        if reason is None:
            _add(builder, number, record, text)
        else:
            builder.leave_out(reason)
        yield


def _drain(content: Any, stream: ForwardStream, text: GrowingText | None = None) -> None:
    """Read the rest of a record into ``text``."""
    while True:
        stream.allow(4 * _STEP_BYTES)  # libraries read ahead
        data = content.read(_STEP_BYTES)
        if not data:
            return
        if text:
            text.append(data, len(data))


def _why_left_out(record: Any) -> str | None:
    if record.rec_type in _DOCUMENTS and (_media_type(record) == _TEXT or _media_type(record) in _MARKUP):
        return None
    if record.rec_type in _DOCUMENTS:
        return "web record of other media than text"
    return f"web record of type {record.rec_type if record.rec_type in _OTHERS else 'unknown'}"


def _media_type(record: Any) -> str:
    """Return the media type of what a record holds: of a response that of the page, not that of the message."""
    if record.http_headers:
        value = record.http_headers.get_header("Content-Type")
    else:
        value = record.rec_headers.get_header("Content-Type")
    return (value or "").partition(";")[0].strip().lower()


def _add(builder: BlockBuilder, number: int, record: Any, text: GrowingText) -> None:
    found = text.finish()
    if _media_type(record) in _MARKUP:
        advice = "take the WET file of the same name, or extract the text first, for example with trafilatura"
        raw = b"".join(text.parts)
        builder.reject(reject(number, "web page, not text", advice, raw))
    elif isinstance(found, Rejected):
        builder.reject(found)
    else:
        values = {key: record.rec_headers.get_header(name) for key, name in _KEYS.items()}
        record = {key: value for key, value in values.items() if value is not None}
        builder.add(number, record | {"text": found.decode("utf-8")})


def _iter_records(stream: ForwardStream) -> Iterator[Any]:
    """Yield the records, each before it is read; all of one is read before the next."""
    try:
        from warcio.archiveiterator import WARCIterator  # noqa: PLC0415  # optional
        from warcio.exceptions import ArchiveLoadFailed  # noqa: PLC0415
        from warcio.statusandheaders import StatusAndHeadersParser  # noqa: PLC0415
    except ImportError:
        raise ResourceError(
            f"{stream.path}: warcio is not installed, which reads web archives; install it with "
            "pip install 'kexue_train[web]'"
        ) from None
    # Its own parsing of HTTP takes a record that is cut off for the end of the file.
    records = WARCIterator(stream, no_record_parse=True, block_size=_STEP_BYTES)
    parser = StatusAndHeadersParser([], verify=False)
    while True:
        stream.allow(_HEADER_BYTES)
        try:
            record = next(records, None)
        except ArchiveLoadFailed as error:
            raise stream.damaged(str(error)) from None
        if records.err_count:
            raise stream.damaged("a record is longer than it says")
        if record is None:
            break
        if not (record.rec_headers.get_header("Content-Length") or "").isdecimal():
            raise stream.damaged("a record without its length")
        if record.rec_type == "response":
            with suppress(EOFError):  # it is empty, or cut off as will be seen
                record.http_headers = parser.parse(record.raw_stream)
        yield record
    stream.check()
