"""Reads delimited text whose first row names the columns: CSV as RFC 4180 has it, TSV without quoting.

Python's csv module is more lenient than the RFC: it takes a quotation mark anywhere. Where marks are escaped by
backslashes, or forgotten, that gives rows that nobody wrote, so such records are refused.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.corpus.builder import BlockBuilder, check_columns, gather_blocks
from kexue_train.corpus.lines import LineBlock, iter_line_blocks, read_line_records
from kexue_train.corpus.records import (
    MAX_RECORD_BYTES,
    RAW_LIMIT_BYTES,
    ReadOptions,
    RecordBlock,
    describe_bad_byte,
    holds_nul,
    not_utf8,
    reject,
    too_long,
    wrong_width,
)
from kexue_train.corpus.streams import ByteStream, open_stream
from kexue_train.foundation.errors import CorpusError

_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # as a file opened with newline=""
_FIELD = rb'(?:"(?:[^"]++|"")*+"|[^",\r\n]*+)'
_RECORD = re.compile(_FIELD + rb"(?:," + _FIELD + rb")*+[\r\n]*+")
_OPENING = re.compile(rb'(?:^|,)"')
_CLOSINGS = (re.compile(rb'"(?=[,\r\n]|$)'), re.compile(rb'\\.|""|"', re.DOTALL))
"""Where a field may end whose quotation marks are not doubled: before a comma, or without a backslash before it."""


class _TooLong(Exception):  # noqa: N818  # no error, but the way out of csv.reader
    """The record at hand is over the limit."""


def read_csv(
    path: str, compression: str | None, options: ReadOptions, max_record_bytes: int = MAX_RECORD_BYTES
) -> Iterator[RecordBlock]:
    """Yield the records below the header; positions are their numbers from 0.

    Raises:
        CorpusError: If the header cannot be read or has no text column.
    """
    csv.field_size_limit(max(csv.field_size_limit(), max_record_bytes))
    builder = BlockBuilder(options)
    with open_stream(path, compression) as stream:
        lines = _Lines(stream, options.block_bytes, max_record_bytes)
        yield from gather_blocks(_fill(builder, path, lines, options), builder, options.block_bytes)


def _fill(builder: BlockBuilder, path: str, lines: _Lines, options: ReadOptions) -> Iterator[None]:
    reader = csv.reader(lines, strict=True)
    names = _read_header(path, lines, reader)
    if names is None:
        return
    check_columns(path, {*options.text_keys, *options.keep} - set(names), names, options)
    number = 0
    while (row := lines.next_row(reader)) is not None:
        if problem := lines.problem():
            builder.reject(reject(number, *problem, lines.head))
        elif lines.is_too_long:
            builder.reject(too_long(number, lines.num_bytes, lines.head))
        elif nul := holds_nul(number, lines.head):
            builder.reject(nul)
        elif not row:
            builder.add_blank()
        elif len(row) != len(names):
            builder.reject(wrong_width(number, len(row), len(names), lines.head))
        else:
            builder.add(number, dict(zip(names, row, strict=True)), lines.head)
        number += 1
        yield


def _read_header(path: str, lines: _Lines, reader: Any) -> list[str] | None:
    """Return the names of the columns; None if the file holds nothing."""
    row = lines.next_row(reader)
    while row == [] and not (lines.is_too_long or lines.problem()):
        row = lines.next_row(reader)
    if row is not None and (lines.is_too_long or lines.problem()):
        reason, detail = lines.problem() or ("too long", f"more than {lines.num_bytes} bytes")
        raise CorpusError(f"{path}:1: the header is {reason} ({detail}); the first row has to name the columns")
    return row


class _Lines:
    """Gives ``csv.reader`` the lines of a stream, and remembers about those of the record at hand."""

    def __init__(self, stream: ByteStream, block_bytes: int, max_record_bytes: int) -> None:
        self._limit = max_record_bytes
        self._lines = _iter_lines(stream, block_bytes, max_record_bytes)
        self._again: str | None = None
        self._begin()

    def _begin(self) -> None:
        self.head = b""
        """The beginning of the record."""
        self.num_bytes = self._num_held = self._num_lines = 0
        self.is_too_long = False
        self._ended_within = self._is_malformed = False
        self._bad_byte = ""
        self._held: list[bytes] = []

    def next_row(self, reader: Any) -> list[str] | None:
        """Return the fields of the next record (of one that is too long, only some); None at the end."""
        self._begin()
        while True:
            try:
                row = next(reader, None)
            except _TooLong:
                self.is_too_long = True
                if self._again is None:
                    return []
            except csv.Error:
                self._refuse_quoting()
                return []
            else:
                if any(b'"' in line for line in self._held) and not _RECORD.fullmatch(b"".join(self._held)):
                    self._refuse_quoting()
                return row

    def _refuse_quoting(self) -> None:
        """Go to a line that is certainly not within the record at hand, in which a quotation mark is wrong."""
        if self.is_too_long or self._ended_within:
            return
        self._is_malformed = True
        is_open = [False] * len(_CLOSINGS)
        for line in self._held:
            is_open = [_is_open_after(line, *state) for state in zip(_CLOSINGS, is_open, strict=True)]
        while any(is_open) and (following := self._next_line()) is not None:
            is_open = [_is_open_after(following, *state) for state in zip(_CLOSINGS, is_open, strict=True)]

    def problem(self) -> tuple[str, str] | None:
        """Return reason and detail if the record cannot be used, its length aside."""
        if self.is_too_long:
            return None
        if self._bad_byte:
            return "not UTF-8", self._bad_byte
        if self._ended_within:
            return "unclosed quote", f"a quotation mark takes in all {self._num_lines} lines to the end of the file"
        if self._is_malformed:
            found = "after a backslash" if b'\\"' in self.head else "within a field"
            return "malformed quoting", f"a quotation mark {found} that is not doubled; {self._num_lines} lines"
        return None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self._again is not None:
            line, self._again = self._again, None
            return line
        taken = next(self._lines, None)
        if taken is None:
            self._ended_within = self._num_lines > 0
            raise StopIteration
        data, long_bytes = taken
        num_bytes = self._take(data, long_bytes)
        line = self._decode(data, self.num_bytes - num_bytes)
        if long_bytes is not None:  # a line that is too long by itself; the record is taken to end with it
            raise _TooLong
        if self._num_lines > 1 and self._num_held > self._limit:
            # csv.reader stands within quotes. Make it discard its buffer and stay within quotes.
            self._again, self._num_held = '"' + line, num_bytes
            self._held.clear()
            raise _TooLong
        self._held.append(data)
        return line

    def _next_line(self) -> bytes | None:
        data, long_bytes = next(self._lines, (None, None))
        if data is not None:
            self._take(data, long_bytes)
        return data

    def _take(self, data: bytes, long_bytes: int | None) -> int:
        """Count a line to the record; return its length."""
        num_bytes = long_bytes or len(data)
        self.head += data[: RAW_LIMIT_BYTES - len(self.head)]
        self.num_bytes += num_bytes
        self._num_held += num_bytes
        self._num_lines += 1
        return num_bytes

    def _decode(self, data: bytes, offset: int) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            self._bad_byte = self._bad_byte or describe_bad_byte(error, offset)
            return data.decode("utf-8", "replace")


def _is_open_after(line: bytes, closing: re.Pattern[bytes], is_open: bool) -> bool:
    """Return whether a field in quotation marks goes on after ``line``; ``is_open`` says so of the line before it."""
    at = 0
    while True:
        if not is_open:
            opening = _OPENING.search(line, at)
            if opening is None:
                return False
            at = opening.end()
        mark = closing.search(line, at)
        if mark is None:
            return True
        at, is_open = mark.end(), mark[0] != b'"'


def _iter_lines(stream: ByteStream, block_bytes: int, max_record_bytes: int) -> Iterator[tuple[bytes, int | None]]:
    """Yield lines with their ends; of a line that is too long only the beginning, and its length."""
    for block in iter_line_blocks(stream, block_bytes=block_bytes, max_record_bytes=max_record_bytes):
        text = block.without_bom()
        if block.long_line_bytes is not None:
            yield text.data, block.long_line_bytes
        else:
            for line in _LINE.findall(text.data):
                yield line, None


def read_tsv(
    path: str, compression: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of the lines below the header that begin in the bytes ``[start, end)``.

    Raises:
        CorpusError: If the header cannot be read or has no text column.
    """
    return read_line_records(path, compression, options, start, end, _TsvParser(path, options, start))


class _TsvParser:
    """Parses blocks of the lines of one file, of which it knows the header."""

    def __init__(self, path: str, options: ReadOptions, start: int) -> None:
        """Read the header on its own if the lines to come do not begin with it, which is if ``start`` is not 0."""
        self._path, self._options = path, options
        self._names: list[str] | None = None
        if start:
            with open_stream(path) as stream:
                for block in itertools.islice(iter_line_blocks(stream), 1):
                    self._take_header(block.without_bom())

    def __call__(self, block: LineBlock, positions: npt.NDArray[np.uint64]) -> RecordBlock:
        """Return the records of a block; ``positions`` has shape (n,) for n lines."""
        builder = BlockBuilder(self._options)
        first = 0
        if not block.data:  # a byte order mark was all
            return builder.build()
        if self._names is None:
            self._take_header(block)
            first = 1
        edges = itertools.pairwise(block.bounds[first:].tolist())
        for position, (low, high) in zip(positions[first:].tolist(), edges, strict=True):
            self._add(builder, position, _without_end(block.data[low:high]))
        return builder.build()

    def _take_header(self, block: LineBlock) -> None:
        line = _without_end(block.data[: block.bounds[1]])
        try:
            names = line.decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{self._path}:1: the header is not UTF-8 at byte {error.start}; convert the file with iconv"
            ) from None
        if block.long_line_bytes is not None:
            raise CorpusError(f"{self._path}:1: the header has {block.long_line_bytes} bytes; is this a .tsv file?")
        options = self._options
        check_columns(self._path, {*options.text_keys, *options.keep} - set(names), names, options)
        self._names = names

    def _add(self, builder: BlockBuilder, position: int, line: bytes) -> None:
        if not line.strip():
            builder.add_blank()
            return
        if rejected := not_utf8(position, line) or holds_nul(position, line):
            builder.reject(rejected)
            return
        names = self._names or []
        fields = line.decode("utf-8").split("\t")
        if len(fields) != len(names):
            builder.reject(wrong_width(position, len(fields), len(names), line))
        else:
            builder.add(position, dict(zip(names, fields, strict=True)), line)


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")
