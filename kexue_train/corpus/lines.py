"""Cuts a byte stream into lines, and reads files whose lines are records, a block at a time, in bounded memory.

Line ends are found with NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kexue_train.corpus.builder import reject_only
from kexue_train.corpus.records import MAX_RECORD_BYTES, RAW_LIMIT_BYTES, ReadOptions, RecordBlock, too_long
from kexue_train.corpus.streams import BOM, ByteStream, open_stream

_LOOK_AHEAD_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Whole lines that lie one after the other, or one line that is too long to hold."""

    offset: int
    """Byte offset of ``data`` in the stream."""
    data: bytes
    bounds: npt.NDArray[np.int64]
    """Shape (n + 1,): line i is ``data[bounds[i]:bounds[i + 1]]``, its newline included."""
    long_line_bytes: int | None = None
    """Length of a line over the limit; ``data`` then is only its beginning."""

    def without_bom(self) -> LineBlock:
        """Return the lines without a byte order mark at the start of the stream, which belongs to none."""
        if self.offset or not self.data.startswith(BOM):
            return self
        bounds = np.maximum(self.bounds - len(BOM), 0)
        return LineBlock(self.offset, self.data[len(BOM) :], bounds, self.long_line_bytes)


def read_line_records(
    path: str,
    compression: str | None,
    options: ReadOptions,
    start: int,
    end: int | None,
    parse: Callable[[LineBlock, npt.NDArray[np.uint64]], RecordBlock],
) -> Iterator[RecordBlock]:
    """Yield the records of the lines that begin in the bytes ``[start, end)``; every line is a record.

    Positions are the byte offsets of the lines in a plain file, their numbers from 0 in a compressed one.
    """
    number = 0
    with open_stream(path, compression, offset=max(start - 1, 0)) as stream:
        for block in iter_line_blocks(
            stream, start=start, end=end, block_bytes=options.block_bytes, line_end=options.line_end
        ):
            num_lines = len(block.bounds) - 1
            numbers = np.arange(number, number + num_lines) if compression else block.offset + block.bounds[:-1]
            number += num_lines
            positions = numbers.astype(np.uint64)
            if block.long_line_bytes is not None:
                yield reject_only(too_long(int(positions[0]), block.long_line_bytes, block.data), options)
            else:
                yield parse(block if options.raw else block.without_bom(), positions)


def iter_line_blocks(
    stream: ByteStream,
    *,
    start: int = 0,
    end: int | None = None,
    block_bytes: int = 16 * 2**20,
    max_record_bytes: int = MAX_RECORD_BYTES,
    line_end: bytes = b"\n",
) -> Iterator[LineBlock]:
    """Yield the lines that begin in ``[start, end)``; they may go on beyond ``end``. Only ``line_end`` ends a line.

    Args:
        stream: Stands at byte ``max(start - 1, 0)``: a line begins at ``start`` only if a line end lies before it.
        start: First byte of the range.
        end: First byte after it; None for the end of the stream.
        block_bytes: About how much is read at a time.
        max_record_bytes: A longer line is given by its beginning and length alone.
        line_end: One byte.
    """
    rest = ahead = b""  # the beginning of a line; what was read beyond a line that was skipped
    offset = start
    if start:
        offset, ahead = _skip_line(stream, start - 1, end, block_bytes, line_end)
    while end is None or offset < end:
        # With the end of the last line, as a block of its own would cost more than most lines are long.
        missing = block_bytes if end is None else max(end - offset - len(rest), 0) + _LOOK_AHEAD_BYTES
        left = min(block_bytes, missing)
        # Reading as much again as is held keeps the copying of a long line linear.
        data, ahead = ahead or stream.read(min(max(left, len(rest)), max_record_bytes + 1)), b""
        if not data:
            if rest:
                yield _make_block(offset, rest, np.array([0, len(rest)]))
            return
        cut = data.rfind(line_end) + 1
        if cut:
            whole, rest = b"".join((rest, memoryview(data)[:cut])), data[cut:]  # one copy
            yield from _blocks_of(offset, whole, end, max_record_bytes, line_end)
            offset += len(whole)
        else:
            rest += data
            if len(rest) > max_record_bytes:
                head = rest[:RAW_LIMIT_BYTES]
                length, ahead = _skip_long_line(stream, len(rest), block_bytes, line_end)
                yield LineBlock(offset, head, np.array([0, len(head)]), long_line_bytes=length)
                rest = b""
                offset += length + 1


def _skip_line(
    stream: ByteStream, offset: int, end: int | None, block_bytes: int, line_end: bytes
) -> tuple[int, bytes]:
    """Go to the first line start after ``offset``; return its offset, and what was read beyond it."""
    while end is None or offset < end:
        data = stream.read(min(block_bytes, _LOOK_AHEAD_BYTES))
        if not data:
            break
        cut = data.find(line_end) + 1
        if cut:
            return offset + cut, data[cut:]
        offset += len(data)
    return (offset if end is None else max(offset, end)), b""


def _skip_long_line(stream: ByteStream, length: int, block_bytes: int, line_end: bytes) -> tuple[int, bytes]:
    """Read to the end of a line of which ``length`` bytes were read: its whole length, and what was read beyond it."""
    while data := stream.read(block_bytes):
        cut = data.find(line_end)
        if cut >= 0:
            return length + cut, data[cut + 1 :]
        length += len(data)
    return length, b""


def _blocks_of(
    offset: int, data: bytes, end: int | None, max_record_bytes: int, line_end: bytes
) -> Iterator[LineBlock]:
    bounds = np.concatenate([[0], np.flatnonzero(np.frombuffer(data, np.uint8) == ord(line_end)) + 1])
    if end is not None:
        bounds = bounds[: np.searchsorted(bounds[:-1], end - offset) + 1]
    first = 0
    for long in np.flatnonzero(np.diff(bounds) - 1 > max_record_bytes).tolist():
        if long > first:
            yield _make_block(offset, data, bounds[first : long + 1])
        head = data[bounds[long] : bounds[long] + RAW_LIMIT_BYTES]
        length = int(bounds[long + 1] - bounds[long]) - 1
        yield LineBlock(offset + int(bounds[long]), head, np.array([0, len(head)]), long_line_bytes=length)
        first = long + 1
    if len(bounds) - 1 > first:
        yield _make_block(offset, data, bounds[first:])


def _make_block(offset: int, data: bytes, bounds: npt.NDArray[np.int64]) -> LineBlock:
    low, high = int(bounds[0]), int(bounds[-1])
    whole = low == 0 and high == len(data)
    return LineBlock(offset + low, data if whole else data[low:high], bounds - low)
