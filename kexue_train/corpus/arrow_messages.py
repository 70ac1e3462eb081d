"""What the record batches of an Arrow IPC file take to be read, from their metadata; the batches are not unpacked.

Arrow reads the buffers of a batch whole, and unpacks compressed ones whole. Metadata are flatbuffers:
https://github.com/apache/arrow/blob/main/format/Message.fbs, https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from kexue_train.corpus.mapped_file import ReadAt

_CONTINUATION = b"\xff\xff\xff\xff"
_DICTIONARY, _BATCH = 2, 3
_HEADER, _BODY_LENGTH = 2, 3  # fields of a Message
_BUFFERS, _COMPRESSION = 2, 3  # fields of a RecordBatch
_DATA = 1  # field of a DictionaryBatch


@dataclass(frozen=True, slots=True)
class BatchSize:
    """The buffers of one record batch, or of one dictionary."""

    is_dictionary: bool
    stored: int
    """Bytes of the buffers of the chosen columns."""
    unpacked: int
    """Their bytes unpacked, if they are compressed; else 0."""


def iter_batch_sizes(read_at: ReadAt, start: int, chosen: set[int] | None) -> Iterator[BatchSize]:
    """Yield the sizes of the batches and dictionaries of a stream that begins at byte ``start``, up to its end mark.

    Args:
        read_at: Reads the file.
        start: 8 in a file, which holds a stream; else 0.
        chosen: The buffers that count, as ``choose_buffers`` gives them.

    Raises:
        pyarrow.ArrowInvalid: If the metadata make no sense.
    """
    while True:
        head = read_at(start, 8)
        if len(head) < 4:
            raise pa.ArrowInvalid("its end mark is missing, so it is cut off")
        has_mark = head[:4] == _CONTINUATION  # files of before 2019 have none
        length = int.from_bytes(head[4:8] if has_mark else head[:4], "little")
        start += 8 if has_mark else 4
        if not length:
            return
        metadata = read_at(start, length)
        start += length
        size, body_bytes = measure_message(metadata, partial(_read_from, read_at, start), chosen)
        if size:
            yield size
        start += body_bytes


def _read_from(read_at: ReadAt, start: int, offset: int, size: int) -> bytes:
    return read_at(start + offset, size)


def choose_buffers(schema: pa.Schema, fields: Sequence[int]) -> set[int] | None:
    """Return the numbers of the buffers of some columns; None: any (of views a batch has as many as it likes)."""
    counts = [_count_buffers(field.type) for field in schema]
    if None in counts:
        return None
    ends = [sum(count or 0 for count in counts[: i + 1]) for i in range(len(counts))]
    return {number for i in fields for number in range(ends[i] - (counts[i] or 0), ends[i])}


def measure_message(metadata: bytes, read_body: ReadAt, chosen: set[int] | None) -> tuple[BatchSize | None, int]:
    """Return the size of the batch or dictionary of a message, None for another kind, and the bytes of its body.

    Raises:
        pyarrow.ArrowInvalid: If the metadata make no sense.
    """
    try:
        message = _Table(metadata, _offset(metadata, 0))
        kind, body_bytes = message.number(1, "B"), message.number(_BODY_LENGTH, "q")
        if kind not in (_DICTIONARY, _BATCH):
            return None, body_bytes
        batch = message.table(_HEADER) if kind == _BATCH else message.table(_HEADER).table(_DATA)
        buffers = batch.pairs(_BUFFERS)
        is_packed = batch.has(_COMPRESSION)
    except (struct.error, IndexError) as error:
        raise pa.ArrowInvalid(f"its metadata make no sense ({error})") from None
    if body_bytes < 0:
        raise pa.ArrowInvalid("a body of negative size")
    wanted = [
        entry for i, entry in enumerate(buffers) if entry[1] and (chosen is None or kind == _DICTIONARY or i in chosen)
    ]
    unpacked = sum(_unpacked(read_body(offset, 8), length) for offset, length in wanted) if is_packed else 0
    return BatchSize(kind == _DICTIONARY, sum(length for _, length in wanted), unpacked), body_bytes


def _unpacked(head: bytes, length: int) -> int:
    size = int.from_bytes(head, "little", signed=True)
    return size if size >= 0 else length  # -1: stored as it is


def _count_buffers(kind: pa.DataType) -> int | None:
    """Return how many buffers of a batch belong to a column; None: as many as it likes."""
    if isinstance(kind, pa.BaseExtensionType):
        return _count_buffers(kind.storage_type)
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return None
    if pa.types.is_dictionary(kind):
        return _count_buffers(kind.index_type)
    # Arrow counts a bitmap of nulls for every type; a null column, a union and runs have none in a message.
    has_none = pa.types.is_null(kind) or pa.types.is_union(kind) or pa.types.is_run_end_encoded(kind)
    children = [_count_buffers(kind.field(i).type) for i in range(kind.num_fields)]
    return None if None in children else kind.num_buffers - has_none + sum(count or 0 for count in children)


def _offset(data: bytes, at: int) -> int:
    return at + int(struct.unpack_from("<I", data, at)[0])


class _Table:
    """A table of a flatbuffer; a field is found through its vtable."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._vtable = at - struct.unpack_from("<i", data, at)[0]
        if not 0 <= self._vtable <= len(data):
            raise IndexError("a table beyond the end")
        self._size = struct.unpack_from("<H", data, self._vtable)[0]

    def has(self, field: int) -> bool:
        return self._place(field) > 0

    def number(self, field: int, form: str) -> int:
        place = self._place(field)
        return int(struct.unpack_from(f"<{form}", self._data, place)[0]) if place else 0

    def table(self, field: int) -> _Table:
        return _Table(self._data, _offset(self._data, self._place(field)))

    def pairs(self, field: int) -> list[Any]:
        """Return a vector of structs of two int64."""
        if not self.has(field):
            return []
        start = _offset(self._data, self._place(field))
        (number,) = struct.unpack_from("<I", self._data, start)
        if start + 4 + 16 * number > len(self._data):
            raise IndexError("a vector beyond the end")
        return list(struct.iter_unpack("<qq", self._data[start + 4 : start + 4 + 16 * number]))

    def _place(self, field: int) -> int:
        slot = 4 + 2 * field
        if slot + 2 > self._size:
            return 0
        offset = struct.unpack_from("<H", self._data, self._vtable + slot)[0]
        return self._at + int(offset) if offset else 0
