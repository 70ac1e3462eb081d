"""Reads text files whose documents are longer than a line: the lines between two blank ones, or the whole file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from kexue_train.corpus.builder import BlockBuilder, gather_blocks
from kexue_train.corpus.lines import BOM, iter_line_blocks
from kexue_train.corpus.options import ReadOptions
from kexue_train.corpus.records import MAX_RECORD_BYTES, RAW_LIMIT_BYTES, RecordBlock, not_utf8, too_long
from kexue_train.corpus.streams import open_stream
from kexue_train.corpus.unpacking import ByteStream

_CHUNK_BYTES = 1 << 20


class _Line(NamedTuple):
    offset: int
    number: int
    data: bytes
    """With its newline; only the beginning of a line that is too long."""
    num_bytes: int

    @property
    def is_blank(self) -> bool:
        return self.num_bytes == len(self.data) and not self.data.strip(b" \r\n")


@dataclass(slots=True)
class _Document:
    """A document as its lines come in; beyond the limit only its beginning and length are kept."""

    position: int
    limit: int
    parts: list[bytes] = field(default_factory=list)
    num_bytes: int = 0

    def append(self, data: bytes, num_bytes: int) -> None:
        self.parts.append(data)
        self.num_bytes += num_bytes
        if self.num_bytes > self.limit:
            self.parts = [b"".join(self.parts)[:RAW_LIMIT_BYTES]]

    def give(self, builder: BlockBuilder) -> None:
        raw = b"".join(self.parts)
        if self.num_bytes > self.limit:
            builder.reject(too_long(self.position, self.num_bytes, raw))
            return
        raw = raw.removesuffix(b"\n").removesuffix(b"\r").replace(b"\r\n", b"\n")
        if rejected := not_utf8(self.position, raw):
            builder.reject(rejected)
        else:
            builder.add_text(self.position, raw.decode("utf-8"))


def read_blocks(
    path: str,
    compression: str | None,
    options: ReadOptions,
    start: int = 0,
    end: int | None = None,
    max_record_bytes: int = MAX_RECORD_BYTES,
) -> Iterator[RecordBlock]:
    r"""Yield the documents that blank lines (nothing but blanks and ``\r``) separate; ``\r\n`` becomes ``\n``.

    A document belongs to the byte range in which the blank line right before it begins, the first of a file to the
    range that begins at 0. Each has exactly one such line, so any cut of a file gives each document once.
    """
    builder = BlockBuilder(options)
    with open_stream(path, compression, offset=max(start - 1, 0)) as stream:
        lines = _iter_lines(stream, start, options.block_bytes, max_record_bytes)
        steps = _fill(builder, lines, start, end, compression is None, max_record_bytes)
        yield from gather_blocks(steps, builder, options.block_bytes)


def read_file(
    path: str, compression: str | None, options: ReadOptions, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[RecordBlock]:
    r"""Yield the whole file as one document, without its final newline; ``\r\n`` becomes ``\n``."""
    builder, document = BlockBuilder(options), _Document(0, max_record_bytes)
    with open_stream(path, compression) as stream:
        while data := stream.read(_CHUNK_BYTES):
            document.append(data if document.num_bytes else data.removeprefix(BOM), len(data))
    document.give(builder)
    yield builder.build()


def _fill(
    builder: BlockBuilder, lines: Iterator[_Line], start: int, end: int | None, by_offset: bool, limit: int
) -> Iterator[None]:
    document: _Document | None = None
    is_ours = start == 0  # whether a document that begins at the next line is one of this range
    for line in lines:
        is_beyond = end is not None and line.offset >= end
        if line.is_blank:
            if document:
                document.give(builder)
                document = None
                yield
            is_ours = not is_beyond
        elif document or is_ours:
            document = document or _Document(line.offset if by_offset else line.number, limit)
            document.append(line.data, line.num_bytes)
            is_ours = False
        if is_beyond and not document:
            return
    if document:
        document.give(builder)
        yield


def _iter_lines(stream: ByteStream, start: int, block_bytes: int, limit: int) -> Iterator[_Line]:
    number = 0
    for block in iter_line_blocks(stream, start=start, block_bytes=block_bytes, max_record_bytes=limit):
        text = block.without_bom()
        offsets = (block.offset + block.bounds[:-1]).tolist()
        for offset, (low, high) in zip(offsets, itertools.pairwise(text.bounds.tolist()), strict=True):
            yield _Line(offset, number, text.data[low:high], block.long_line_bytes or high - low)
            number += 1
