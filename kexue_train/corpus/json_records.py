"""Reads JSON records: the lines of JSON Lines, or the elements of one JSON array, in bounded memory.

Of an array only strings, brackets and commas are followed here; the JSON of an element is parsed as a line of JSON
Lines would be, so the same records are accepted, and a wrong element costs that element alone. (ijson 3.6 was tried:
it silently turns a lone surrogate into a question mark, and gives up the file at the first wrong element.)
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic_core import SchemaValidator, core_schema, from_json

from kexue_train.corpus.builder import BlockBuilder, gather_blocks
from kexue_train.corpus.doubled_keys import DoubledKeys, doubled_key
from kexue_train.corpus.lines import LineBlock, read_line_records
from kexue_train.corpus.records import (
    MAX_RECORD_BYTES,
    RAW_LIMIT_BYTES,
    ReadOptions,
    RecordBlock,
    Rejected,
    not_utf8,
    reject,
    too_long,
)
from kexue_train.corpus.streams import BOM, ByteStream, open_stream
from kexue_train.foundation.errors import CorpusError, DamagedInputError

_CHUNK_BYTES = 1 << 18
_IN_ARRAY = re.compile(rb'["\[\]{},]')
_IN_ELEMENT = re.compile(rb'["\[\]{}]')
_IN_STRING = re.compile(rb'["\\]')


def read_json_lines(
    path: str, compression: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of JSON Lines that begin in the bytes ``[start, end)``."""
    return read_line_records(path, compression, options, start, end, partial(_parse_lines, options=options))


def _parse_lines(block: LineBlock, positions: npt.NDArray[np.uint64], options: ReadOptions) -> RecordBlock:
    """Return the records of a block of JSON Lines; ``positions`` has shape (n,) for n lines."""
    builder, keys = BlockBuilder(options), DoubledKeys(options)
    parse, key, quoted = _record_parser(options), options.text_keys[0], keys.quoted
    for position, line in zip(positions.tolist(), io.BytesIO(block.data), strict=False):  # none in a lone mark
        try:
            record = parse(line)
        except ValueError:  # no usual record, or none at all
            add_json(builder, position, line.removesuffix(b"\n"), keys)
            continue
        text = record[key]
        # The text is that of the last of equal keys, and no shorter as JSON: all of them stand before its length.
        if line.count(quoted, 0, len(line) - len(text)) > 1:
            add_json(builder, position, line.removesuffix(b"\n"), keys)
        else:
            builder.add_usual(position, record, text)
    return builder.build()


def _record_parser(options: ReadOptions) -> Callable[[bytes], dict[str, Any]]:
    """Return a function that parses the JSON of an object; of others it raises a ``ValueError``.

    It is for the usual record, whose text is a string under one key of the object itself: it takes the bytes of the
    text as the parser has them, without making Python's strings of them first.
    """
    if options.keep or options.rejects_unread or len(options.text_keys) > 1:
        return _parse_none
    (key,) = options.text_keys
    record = core_schema.typed_dict_schema(
        {key: core_schema.typed_dict_field(core_schema.bytes_schema())}, extra_behavior="allow"
    )
    parse: Callable[[bytes], dict[str, Any]] = SchemaValidator(record).validate_json
    return parse


def _parse_none(_: bytes) -> dict[str, Any]:
    raise ValueError("more than one value is wanted")


def add_json(builder: BlockBuilder, position: int, data: bytes, keys: DoubledKeys) -> None:
    """Give ``builder`` the record whose JSON text is ``data``; blank ones are counted."""
    try:
        record = from_json(data, cache_strings="keys")
    except ValueError as error:
        line = data.strip()
        if not line:
            builder.add_blank()
        elif line != data:  # Python strips more than JSON allows around a value
            add_json(builder, position, line, keys)
        else:
            builder.reject(not_utf8(position, line) or _bad_json(position, line, error))
    else:
        if name := keys.name_in(data):
            builder.reject(doubled_key(position, name, data))
        else:
            builder.add(position, record, data)


def _bad_json(position: int, line: bytes, error: ValueError) -> Rejected:
    detail = str(error).replace(" at line 1 column ", " at column ")
    if b"\r" in line:
        detail += "; its lines seem to end in carriage returns alone: convert them to newlines"
    return reject(position, "not valid JSON", detail, line)


class Element(NamedTuple):
    """One element of the array."""

    data: bytes
    """Its text; only the beginning if it is longer than the limit."""
    num_bytes: int
    """Its length; white space around it counts if it is longer than the limit."""


def read_json_array(path: str, compression: str | None, options: ReadOptions) -> Iterator[RecordBlock]:
    """Yield the records of a file that holds an array of objects; positions are element numbers from 0.

    Raises:
        CorpusError: If the file holds something else, ends before the array does, or holds more after it.
    """
    builder = BlockBuilder(options)
    with open_stream(path, compression) as stream:
        steps = _fill(builder, iter_elements(path, stream), DoubledKeys(options))
        yield from gather_blocks(steps, builder, options.block_bytes)


def _fill(builder: BlockBuilder, elements: Iterator[Element], keys: DoubledKeys) -> Iterator[None]:
    for number, (data, num_bytes) in enumerate(elements):
        if num_bytes > MAX_RECORD_BYTES:
            builder.reject(too_long(number, num_bytes, data))
        elif data:
            add_json(builder, number, data, keys)
        else:
            builder.reject(reject(number, "not valid JSON", "nothing stands between two commas", data))
        yield


def iter_elements(path: str, stream: ByteStream, max_record_bytes: int = MAX_RECORD_BYTES) -> Iterator[Element]:
    """Yield the elements of the array that ``stream`` holds, white space around them taken off."""
    chunk = _find_array(path, stream)
    if chunk is None:
        return
    element, number = _Growing(max_record_bytes), 0
    depth, in_string, at = 1, False, 0
    while True:
        start = 0
        while match := (_IN_STRING if in_string else _IN_ELEMENT if depth > 1 else _IN_ARRAY).search(chunk, at):
            at, sign = match.end(), match[0]
            if sign == b"\\":
                at += 1  # what it escapes, which may be the first byte of the next chunk
            elif sign == b'"':
                in_string = not in_string
            elif sign in b"[{":
                depth += 1
            elif depth > 1:
                depth -= 1
            elif sign in b",]":
                element.append(chunk[start : at - 1])
                found = element.take()
                if found.data or number or sign == b",":
                    yield found
                if sign == b"]":
                    _expect_end(path, chunk[at:], stream)
                    return
                number, start = number + 1, at
        element.append(chunk[start:])
        at = max(at - len(chunk), 0)
        chunk = stream.read(_CHUNK_BYTES)
        if not chunk:
            raise DamagedInputError(
                f"{path}: the JSON array is cut off in element {number}: its closing bracket is missing, or a "
                "quotation mark within it; fetch or make the file again, or leave it out"
            )


class _Growing:
    """An element as it comes in."""

    def __init__(self, max_record_bytes: int) -> None:
        self._limit = max_record_bytes
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def append(self, part: bytes) -> None:
        self._parts.append(part)
        self._num_bytes += len(part)
        if self._num_bytes > self._limit:
            self._parts = [b"".join(self._parts)[:RAW_LIMIT_BYTES]]

    def take(self) -> Element:
        data, num_bytes = b"".join(self._parts).strip(), self._num_bytes
        self._parts, self._num_bytes = [], 0
        return Element(data, num_bytes if num_bytes > self._limit else len(data))


def _find_array(path: str, stream: ByteStream) -> bytes | None:
    """Return what was read behind the opening bracket; None if the file holds nothing but white space."""
    head = stream.read(_CHUNK_BYTES).removeprefix(BOM).lstrip()
    while not head and (data := stream.read(_CHUNK_BYTES)):
        head = data.lstrip()
    if not head:
        return None
    if not head.startswith(b"["):
        raise CorpusError(
            f"{path}: its first character is {chr(head[0])!r}, expected [ for an array of objects; if each line holds "
            "one object, read it with --format jsonl"
        )
    return head[1:]


def _expect_end(path: str, rest: bytes, stream: ByteStream) -> None:
    while not rest.strip():
        rest = stream.read(_CHUNK_BYTES)
        if not rest:
            return
    raise DamagedInputError(
        f"{path}: unexpected data after the end of the JSON array: {rest.strip()[:20]!r}; if each line holds a value, "
        "read it with --format jsonl, or correct the file"
    )
