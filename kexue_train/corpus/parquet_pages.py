"""What a column chunk of Parquet takes to be read, from the headers of its pages; nothing else of it is read.

Arrow unpacks a page as a whole, and keeps the dictionary of a chunk beside it; a row group may be one page. The
headers are Thrift in its compact protocol: https://github.com/apache/parquet-format (``parquet.thrift``), and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from kexue_train.corpus.mapped_file import ReadAt

_HEADER_BYTES = 512
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _DELTA, _BY_DICTIONARY = 0, 7, (2, 8)  # of DELTA_BYTE_ARRAY: a value may repeat the one before in no bytes
_SIZES = {1: 0, 2: 0, 3: 1, 7: 8}  # true, false, byte, double
_INTEGERS, _BINARY, _STRUCT = (4, 5, 6), 8, 12
_LENGTH = struct.Struct("<I")
_PACKED_BYTES = _LENGTH.size  # before the levels of a page, and before a value
_CODECS = {"SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "ZSTD": "zstd", "LZ4": "lz4_raw"}


@dataclass(frozen=True, slots=True)
class ChunkNeeds:
    """What reading the values of one column in one row group takes."""

    held_bytes: int
    """Of the dictionary and the largest page, while the chunk is read."""
    max_values: int
    """So many values, wherever they begin, have at most the bytes that were allowed; 0: one alone may have more."""
    longest: int
    """No value has more bytes."""
    largest_page: int
    """Bytes of the largest page, unpacked."""


class _Page(NamedTuple):
    kind: int
    start: int
    """Where its contents begin."""
    packed: int
    unpacked: int
    values: int
    encoding: int
    levels: int | None
    """Bytes of the levels before the values; None: not said in the header."""


def measure_chunk(read_at: ReadAt, column: Any, batch_bytes: int, *, num_levels: int, is_mapped: bool) -> ChunkNeeds:
    """Read the headers of the pages of ``column``.

    Args:
        read_at: Reads the file.
        column: A ``pyarrow.parquet.ColumnChunkMetaData`` of byte arrays.
        batch_bytes: How many bytes of values may be read at a time.
        num_levels: How many runs of levels a page has: 0 to 2.
        is_mapped: Whether the file is, so that its bytes are no memory of the reader.

    Raises:
        pyarrow.ArrowInvalid: If the headers make no sense.
    """
    pages = list(_iter_pages(read_at, column))
    is_packed = column.compression != "UNCOMPRESSED"
    dictionary = next((page for page in pages if page.kind == _DICTIONARY), None)
    held = max((page.unpacked * is_packed + page.packed * (not is_mapped) for page in pages), default=0)
    held += dictionary.unpacked if dictionary else 0  # a copy, beside the page
    largest = max((page.unpacked for page in pages), default=0)
    if column.physical_type != "BYTE_ARRAY":
        return ChunkNeeds(held, column.num_values, 0, largest)
    data = [page for page in pages if page.kind in (_DATA, _DATA_V2)]
    longest = [page.unpacked for page in data if page.encoding == _DELTA]  # a value has at most the bytes of its page
    if dictionary and any(page.encoding in _BY_DICTIONARY for page in data):
        longest.append(_longest_in_dictionary(read_at, dictionary, column, batch_bytes))
    # A batch may hold values that are found by their longest, and whole small pages: each kind gets half of the bytes.
    small = [page for page in data if page.unpacked <= batch_bytes // 4]
    for page in data:
        if page.unpacked > batch_bytes // 4 and page.encoding not in (_DELTA, *_BY_DICTIONARY):
            can_look = page.encoding == _PLAIN and not is_packed
            longest.append(_longest(read_at, page, num_levels) if can_look else page.unpacked)
    values = min(batch_bytes // 2 // max([*longest, 1]), _values_within(data, small, batch_bytes // 2))
    found = max([*longest, *(page.unpacked for page in small)], default=0)
    return ChunkNeeds(held, max(values, int(found <= batch_bytes)), found, largest)


def _iter_pages(read_at: ReadAt, column: Any) -> Iterator[_Page]:
    start = min(filter(None, (column.dictionary_page_offset, column.data_page_offset)))
    end = start + column.total_compressed_size
    while start < end:
        fields, length = _read_header(read_at, start)
        start += length
        kind, unpacked, packed = (fields.get(number, -1) for number in (1, 2, 3))
        if min(kind, unpacked, packed) < 0:
            raise pa.ArrowInvalid("the header of a page makes no sense")
        # data_page_header, dictionary_page_header, data_page_header_v2; the encoding is their second, second, fourth
        header = fields.get({_DATA: 5, _DICTIONARY: 7, _DATA_V2: 8}.get(kind, 0), {})
        levels = header.get(5, 0) + header.get(6, 0) if kind == _DATA_V2 else None
        encoding = header.get(4 if kind == _DATA_V2 else 2, 0)
        yield _Page(kind, start, packed, unpacked, header.get(1, 0), encoding, levels)
        start += packed


def _read_header(read_at: ReadAt, start: int) -> tuple[dict[int, Any], int]:
    """Return the fields of a header, and its length; it may hold statistics of any length."""
    size = _HEADER_BYTES
    while True:
        data = read_at(start, size)
        try:
            return _read_struct(data, 0)
        except IndexError:
            if len(data) < size:
                raise pa.ArrowInvalid("cut off within the header of a page") from None
            size *= 16


def _read_struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """Return the integers and structs among the fields of a struct, by number, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while kind := data[at]:
        step, kind, at = kind >> 4, kind & 15, at + 1
        if step:
            number += step
        else:
            number, at = _read_integer(data, at)
        if kind in _INTEGERS:
            fields[number], at = _read_integer(data, at)
        elif kind == _STRUCT:
            fields[number], at = _read_struct(data, at)
        else:
            at = _skip(data, at, kind)
    return fields, at + 1


def _skip(data: bytes, at: int, kind: int) -> int:
    """Return where the value ends that begins at ``at``."""
    if kind in _INTEGERS:
        return _read_varint(data, at)[1]
    if kind == _BINARY:
        length, at = _read_varint(data, at)
        return at + length
    if kind == _STRUCT:
        return _read_struct(data, at)[1]
    if kind in _SIZES:
        return at + _SIZES[kind]
    raise pa.ArrowInvalid(f"the header of a page holds a value of kind {kind}")  # lists and maps: there are none


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        octet = data[at]
        value, shift, at = value | (octet & 127) << shift, shift + 7, at + 1
        if octet < 128:
            return value, at


def _values_within(pages: list[_Page], counted: list[_Page], limit: int) -> int:
    """Return how many consecutive values take at most ``limit`` bytes of the pages ``counted``, wherever they begin."""
    if not pages:
        return limit
    chosen = set(counted)
    sizes = np.array([page.unpacked if page in chosen else 0 for page in pages], np.int64)
    values = np.cumsum([page.values for page in pages])
    ends = np.cumsum(sizes)
    # From the last value of page i on, all values up to the end of the last page that still fits.
    last = np.searchsorted(ends, ends - sizes + limit, side="right") - 1
    reach = (values[last] - values + 1)[last < len(pages) - 1]
    return int(reach.min()) if len(reach) else int(values[-1])


def _longest_in_dictionary(read_at: ReadAt, page: _Page, column: Any, limit: int) -> int:
    """Return the longest value of a dictionary; the size of all if that is small, or too large to look."""
    if page.unpacked * column.num_values <= limit or page.unpacked > limit:
        return page.unpacked
    data: Any = read_at(page.start, page.packed)
    if column.compression != "UNCOMPRESSED":
        try:
            data = pa.Codec(_CODECS[column.compression]).decompress(data, page.unpacked)
        except (KeyError, pa.ArrowException, OSError):
            return page.unpacked
    at = longest = 0
    while at + _PACKED_BYTES <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        if length > longest:  # max() would take as long as all the rest
            longest = length
        at += _PACKED_BYTES + length
    return longest


def _longest(read_at: ReadAt, page: _Page, num_levels: int) -> int:
    """Return the longest value of a page that is not compressed."""
    start, levels = page.start, page.levels
    if levels is None:
        levels = 0
        for _ in range(num_levels):
            levels += _PACKED_BYTES + int.from_bytes(read_at(start + levels, _PACKED_BYTES), "little")
    at, longest = start + levels, 0
    for _ in range(page.values):
        if at >= start + page.unpacked:  # the others are null
            break
        length = int.from_bytes(read_at(at, _PACKED_BYTES), "little")
        longest, at = max(longest, length), at + _PACKED_BYTES + length
    return longest
