"""Reads text files, where a document is a line, the lines between two blank ones, or the whole file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, assert_never

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.corpus.builder import BlockBuilder, gather_blocks
from kexue_train.corpus.lines import LineBlock, iter_line_blocks, read_line_records
from kexue_train.corpus.records import (
    MAX_RECORD_BYTES,
    RAW_LIMIT_BYTES,
    ReadOptions,
    RecordBlock,
    Rejected,
    holds_nul,
    make_block,
    not_utf8,
    too_long,
)
from kexue_train.corpus.streams import BOM, ByteStream, open_stream
from kexue_train.foundation.arrow_arrays import to_arrow

_CHUNK_BYTES = 1 << 20


def read_text(
    path: str, compression: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the documents that begin in the bytes ``[start, end)``; ``options.document`` says what a document is."""
    match options.document:
        case "line":
            parse = partial(_parse_raw, line_end=options.line_end) if options.raw else _parse_lines
            return read_line_records(path, compression, options, start, end, parse)
        case "block":
            return read_blocks(path, compression, options, start, end)
        case "file":
            return _read_file(path, compression, options)
        case _:
            assert_never(options.document)


def _parse_lines(block: LineBlock, positions: npt.NDArray[np.uint64]) -> RecordBlock:
    """Take every line as a text, without its line end; ``positions`` has shape (n,) for n lines."""
    starts, ends = _without_ends(block, b"\n")
    if b"\r" in block.data:
        octets = np.frombuffer(block.data, np.uint8)
        ends = ends - ((ends > starts) & (octets[np.maximum(ends - 1, 0)] == ord("\r")))
    rejected: list[Rejected] = []
    if b"\0" in block.data:
        lines = (block.data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
        found = list(map(holds_nul, positions.tolist(), lines))
        rejected = [entry for entry in found if entry]
        is_good = np.array([entry is None for entry in found], dtype=bool)
        positions, starts, ends = positions[is_good], starts[is_good], ends[is_good]
    is_utf8 = _is_utf8(block.data)  # checked at once, as no character of several bytes holds that of a newline
    texts = _pack(block.data, starts, ends).view(pa.large_string())
    return make_block(positions, texts, rejected, is_utf8=is_utf8)


def _parse_raw(block: LineBlock, positions: npt.NDArray[np.uint64], line_end: bytes) -> RecordBlock:
    """Take every line as a record, whatever it holds; only the byte that ends it is taken off."""
    return RecordBlock(positions, _pack(block.data, *_without_ends(block, line_end)))


def _without_ends(block: LineBlock, line_end: bytes) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    ends = block.bounds[1:] - 1
    if not block.data.endswith(line_end):  # only the last line of a file may lack it
        ends[-1] += 1
    return block.bounds[:-1], ends


def _pack(data: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    """Return an array of ``data[starts[i]:ends[i]]``."""
    # Alternate text and gap, then keep every other value: one pass of Arrow's take instead of a Python loop.
    offsets = np.empty(2 * len(starts) + 1, np.int64)
    offsets[:-1:2], offsets[1::2], offsets[-1] = starts, ends, len(data)
    alternating = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 2 * len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    return alternating.take(to_arrow(np.arange(0, 2 * len(starts), 2)))


def _is_utf8(data: bytes) -> bool:
    offsets = np.array([0, len(data)], np.int64)
    try:
        pa.LargeStringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


class Line(NamedTuple):
    """One line of a text file."""

    offset: int
    number: int
    data: bytes
    """With its newline; only the beginning of a line that is too long."""
    num_bytes: int

    @property
    def is_blank(self) -> bool:
        """Whether it holds nothing but blanks."""
        return self.num_bytes == len(self.data) and not self.data.strip(b" \r\n")


@dataclass(slots=True)
class GrowingText:
    """A document as its lines come in; beyond the limit only its beginning and length are kept."""

    position: int
    limit: int
    parts: list[bytes] = field(default_factory=list)
    num_bytes: int = 0

    def append(self, data: bytes, num_bytes: int) -> None:
        """Take a piece of ``num_bytes``, or the beginning of it."""
        self.parts.append(data)
        self.num_bytes += num_bytes
        if self.num_bytes > self.limit:
            self.parts = [b"".join(self.parts)[:RAW_LIMIT_BYTES]]

    def give(self, builder: BlockBuilder) -> None:
        """Let ``builder`` have the document, or the refusal of it."""
        found = self.finish()
        if isinstance(found, Rejected):
            builder.reject(found)
        else:
            builder.add_utf8(self.position, found)

    def finish(self) -> bytes | Rejected:
        """Return the document, which is UTF-8, without its last line end."""
        raw = b"".join(self.parts)
        if self.num_bytes > self.limit:
            return too_long(self.position, self.num_bytes, raw)
        raw = raw.removesuffix(b"\n").removesuffix(b"\r").replace(b"\r\n", b"\n")
        return not_utf8(self.position, raw) or holds_nul(self.position, raw) or raw


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
        lines = iter_lines(stream, start, options.block_bytes, max_record_bytes)
        steps = _fill(builder, lines, start, end, compression is None, max_record_bytes)
        yield from gather_blocks(steps, builder, options.block_bytes)


def _read_file(
    path: str, compression: str | None, options: ReadOptions, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[RecordBlock]:
    r"""Yield the whole file as one document, without its final newline; ``\r\n`` becomes ``\n``."""
    builder, document = BlockBuilder(options), GrowingText(0, max_record_bytes)
    with open_stream(path, compression) as stream:
        while data := stream.read(_CHUNK_BYTES):
            document.append(data if document.num_bytes else data.removeprefix(BOM), len(data))
    document.give(builder)
    yield builder.build()


def _fill(
    builder: BlockBuilder, lines: Iterator[Line], start: int, end: int | None, by_offset: bool, limit: int
) -> Iterator[None]:
    document: GrowingText | None = None
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
            document = document or GrowingText(line.offset if by_offset else line.number, limit)
            document.append(line.data, line.num_bytes)
            is_ours = False
        if is_beyond and not document:
            return
    if document:
        document.give(builder)
        yield


def iter_lines(stream: ByteStream, start: int, block_bytes: int, limit: int) -> Iterator[Line]:
    """Yield the lines of a stream that stands at byte ``max(start - 1, 0)``, beginning with the first one after it."""
    number = 0
    for block in iter_line_blocks(stream, start=start, block_bytes=block_bytes, max_record_bytes=limit):
        text = block.without_bom()
        offsets = (block.offset + block.bounds[:-1]).tolist()
        for offset, (low, high) in zip(offsets, itertools.pairwise(text.bounds.tolist()), strict=True):
            yield Line(offset, number, text.data[low:high], block.long_line_bytes or high - low)
            number += 1
