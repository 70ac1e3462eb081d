"""Reads one input, or a byte range of one, as blocks of records in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic_core import from_json

from kexue_train.corpus.columns import read_arrow, read_parquet
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.lines import LineBlock, iter_line_blocks
from kexue_train.corpus.records import RAW_LIMIT_BYTES, RecordBlock, Rejected, make_block, too_long
from kexue_train.corpus.streams import open_stream

_BOM = b"\xef\xbb\xbf"


def read_records(
    source: Source, *, text_key: str = "text", start: int = 0, end: int | None = None, block_bytes: int = 16 * 2**20
) -> Iterator[RecordBlock]:
    """Yield the records of ``source``; of the byte range ``[start, end)`` if it can be split.

    Args:
        source: One input file.
        text_key: Key or column of the text; dots go into objects (``"a.b"``) unless there is a key with that very name.
        start: First byte of the range; records that begin in the range are read.
        end: First byte after it; None for the end of the file.
        block_bytes: About how much is read at a time.

    Raises:
        CorpusError: If the file as a whole cannot be used; a bad record is no error but a ``Rejected``.
    """
    match source.format:
        case "parquet":
            yield from read_parquet(Path(source.path), text_key, block_bytes)
        case "arrow":
            yield from read_arrow(Path(source.path), text_key, block_bytes)
        case _:
            yield from _read_lines(source, text_key, start, end, block_bytes)


def count_lines(source: Source, position: int) -> int:
    """The number, from 1, of the line that begins at byte ``position`` of a plain file."""
    lines = 1
    with open_stream(Path(source.path)) as stream:
        while position > 0 and (data := stream.read(min(1 << 20, position))):
            lines += data.count(b"\n")
            position -= len(data)
    return lines


def _read_lines(source: Source, text_key: str, start: int, end: int | None, block_bytes: int) -> Iterator[RecordBlock]:
    path, number = Path(source.path), 0
    by_offset = source.compression is None
    with open_stream(path, source.compression, offset=max(start - 1, 0)) as stream:
        for block in iter_line_blocks(stream, start=start, end=end, block_bytes=block_bytes):
            num_lines = len(block.bounds) - 1
            numbers = np.arange(number, number + num_lines) if not by_offset else block.offset + block.bounds[:-1]
            positions = numbers.astype(np.uint64)
            number += num_lines
            if block.long_line_bytes is not None:
                yield make_block(
                    positions[:0],
                    pa.array([], pa.large_string()),
                    [too_long(int(positions[0]), block.long_line_bytes, block.data)],
                )
            elif source.format == "text":
                yield make_block(positions, _line_texts(block))
            else:
                yield _parse_json_lines(block, positions, text_key)


def _without_bom(block: LineBlock) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Data and bounds of the lines; a byte order mark at the start of the stream belongs to none."""
    if block.offset == 0 and block.data.startswith(_BOM):
        return block.data[len(_BOM) :], np.maximum(block.bounds - len(_BOM), 0)
    return block.data, block.bounds


def _line_texts(block: LineBlock) -> pa.LargeStringArray:
    """The lines without their ends, as an array over the block's own bytes, not yet checked to be UTF-8."""
    data, bounds = _without_bom(block)
    octets = np.frombuffer(data, np.uint8)
    ends = bounds[1:].copy()
    ends -= octets[np.maximum(ends - 1, 0)] == ord("\n") if len(data) else 0
    ends = np.maximum(ends, bounds[:-1])
    has_return = (ends > bounds[:-1]) & (octets[np.maximum(ends - 1, 0)] == ord("\r")) if len(data) else ends < 0
    ends -= has_return
    # Views let every line skip its own end without copying; the cast then packs them.
    return _pack(data, bounds[:-1], ends)


def _pack(data: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> pa.LargeStringArray:
    """An array of ``data[starts[i]:ends[i]]``."""
    # Alternate text and gap, then keep every other value: one pass of Arrow's take instead of a Python loop.
    offsets = np.empty(2 * len(starts) + 1, np.int64)
    offsets[:-1:2], offsets[1::2], offsets[-1] = starts, ends, len(data)
    alternating = pa.LargeStringArray.from_buffers(2 * len(starts), pa.py_buffer(offsets), pa.py_buffer(data))
    return alternating.take(pa.array(np.arange(0, 2 * len(starts), 2)))


def _parse_json_lines(block: LineBlock, positions: npt.NDArray[np.uint64], text_key: str) -> RecordBlock:
    data, bounds = _without_bom(block)
    parts = text_key.split(".")
    texts: list[str] = []
    kept: list[int] = []
    rejected: list[Rejected] = []
    num_empty = 0
    edges = bounds.tolist()
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        line = data[low:high].strip()
        if not line:
            num_empty += 1
            continue
        try:
            value = from_json(line, cache_strings="keys")
        except ValueError as error:
            rejected.append(_bad_json(int(positions[i]), line, error))
            continue
        text = _lookup(value, text_key, parts)
        if isinstance(text, str):
            texts.append(text)
            kept.append(i)
        else:
            rejected.append(_no_text(int(positions[i]), line, value, text, text_key))
    result = make_block(positions[kept], pa.array(texts, pa.large_string()), rejected)
    return RecordBlock(result.positions, result.texts, result.rejected, result.blank + num_empty)


class _Missing:
    """The value of a key that is not there."""


def _lookup(value: object, key: str, parts: list[str]) -> object:
    if isinstance(value, dict) and key in value:
        return value[key]
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return _Missing
        value = value[part]
    return value


def _bad_json(position: int, line: bytes, error: ValueError) -> Rejected:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as problem:
        detail = f"byte 0x{line[problem.start]:02x} at byte {problem.start} of the record: {problem.reason}"
        return Rejected(position, "not UTF-8", detail, line[:RAW_LIMIT_BYTES])
    detail = str(error).replace(" at line 1 column ", " at column ")
    if b"\r" in line:
        detail += "; its lines seem to end in carriage returns alone: convert them to newlines"
    return Rejected(position, "not valid JSON", detail, line[:RAW_LIMIT_BYTES])


def _no_text(position: int, line: bytes, value: object, text: object, key: str) -> Rejected:
    raw = line[:RAW_LIMIT_BYTES]
    if not isinstance(value, dict):
        return Rejected(position, "not a JSON object", f"found {_json_name(value)}", raw)
    if text is _Missing:
        keys = ", ".join(f"'{name}'" for name in list(value)[:8]) or "none"
        return Rejected(position, f"no key '{key}'", f"its keys: {keys}", raw)
    return Rejected(position, f"'{key}' is not a string", f"found {_json_name(text)}", raw)


def _json_name(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
