"""A frame: some rows of one bucket as bytes, each column on its own, texts compressed or not, with a checksum.

header | keys | text lengths | texts | extra lengths | extras | tickets | origins        (columns may be empty)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from kexue_train.foundation.arrow_arrays import data_of, make_binary, offsets_of, values_bytes
from kexue_train.shuffle.rows import RowBuffer, Rows

HEADER = np.dtype(
    [
        ("rows", "<u4"),
        ("text_bytes", "<u4"),
        ("extra_bytes", "<u4"),
        ("is_compressed", "<u4"),
        ("stored", "<u4", (7,)),
        ("checksum", "<u8"),
    ]
)
"""Rows, bytes of their texts and extras, stored bytes of each column, xxh3_64 of the stored columns."""

_CODEC = pa.Codec("lz4_raw")
_COMPRESSED = (1, 2, 3, 4)  # columns of lengths and bytes; keys are random, tickets and origins are few bytes


class DamagedFrameError(Exception):
    """The bytes are not those that were written."""


@dataclass(frozen=True, slots=True)
class RowSlice:
    """The rows ``[low, high)`` of ``rows``."""

    rows: Rows
    low: int
    high: int
    lengths: npt.NDArray[np.uint32]
    """Shape (high - low,): bytes of each text."""
    texts: memoryview
    """The bytes of the texts."""

    @property
    def num_rows(self) -> int:
        """Rows."""
        return self.high - self.low

    @property
    def num_bytes(self) -> int:
        """Bytes of texts and extras."""
        return len(self.texts) + (0 if self.rows.extras is None else values_bytes(self._extras()))

    def _extras(self) -> Any:
        return None if self.rows.extras is None else self.rows.extras.slice(self.low, self.num_rows)

    def columns(self) -> tuple[Any, ...]:
        """Return the columns of the frame as buffers."""
        rows, here = self.rows, slice(self.low, self.high)
        extra_lengths, extras = (b"", b"") if rows.extras is None else _encode_values(self._extras())
        return (
            rows.keys[here].data,
            self.lengths.data,
            self.texts,
            extra_lengths,
            extras,
            b"" if rows.tickets is None else rows.tickets[here].data,
            b"" if rows.origins is None else rows.origins[here].data,
        )


def encode_frame(pieces: Sequence[RowSlice], *, compress: bool) -> list[memoryview]:
    """Return the frame that holds the rows of ``pieces``, one after the other: buffers to be written in their order."""
    # Column by column over all pieces: the texts of a frame then compress as one, and the reader needs no copy.
    columns = [
        [memoryview(part) for part in parts] for parts in zip(*(piece.columns() for piece in pieces), strict=True)
    ]
    header = np.zeros((), HEADER)
    header["rows"], header["is_compressed"] = sum(piece.num_rows for piece in pieces), compress
    header["text_bytes"], header["extra_bytes"] = _num_bytes(columns[2]), _num_bytes(columns[4])
    if compress:
        columns = [_compress(column) if i in _COMPRESSED else column for i, column in enumerate(columns)]
    header["stored"] = [_num_bytes(column) for column in columns]
    body = [part for column in columns for part in column]
    digest = xxhash.xxh3_64()
    for part in body:
        digest.update(part)
    header["checksum"] = digest.intdigest()
    return [memoryview(header.tobytes()), *body]


def body_bytes(header: bytes) -> int:
    """Return how many bytes follow this header."""
    return int(np.frombuffer(header, HEADER)[0]["stored"].sum())


def read_plain(
    header_bytes: bytes, buffer: RowBuffer, read_into: Callable[[Sequence[npt.NDArray[Any]]], None]
) -> int | None:
    """Read the columns of a frame straight to their places in ``buffer``, if they lie as they are in memory.

    Args:
        header_bytes: The header of the frame.
        buffer: Receives the rows.
        read_into: Fills arrays with the bytes that follow the header.

    Returns:
        The number of rows; None if the frame is compressed or has other columns than keys and texts: nothing was read.

    Raises:
        DamagedFrameError: If the checksum differs, or the rows are more than there should be.
    """
    header = np.frombuffer(header_bytes, HEADER)[0]
    num_rows, text_bytes = int(header["rows"]), int(header["text_bytes"])
    if header["is_compressed"] or header["stored"].tolist() != [8 * num_rows, 4 * num_rows, text_bytes, 0, 0, 0, 0]:
        return None
    if not buffer.has_room(num_rows, text_bytes):
        raise DamagedFrameError
    columns = buffer.reserve(num_rows, text_bytes)
    read_into(columns)
    digest = xxhash.xxh3_64()
    for column in columns:
        digest.update(column.data)
    if digest.intdigest() != int(header["checksum"]):
        raise DamagedFrameError
    return num_rows


def decode_frame(header_bytes: bytes, body: bytes | memoryview) -> Rows:
    """Return the rows of a frame.

    Raises:
        DamagedFrameError: If the checksum differs.
    """
    header = np.frombuffer(header_bytes, HEADER)[0]
    if len(body) != body_bytes(header_bytes) or xxhash.xxh3_64_intdigest(body) != int(header["checksum"]):
        raise DamagedFrameError
    # ``stored`` holds the bytes of each column; their running sum is where the columns begin and end in the body.
    edges = [0, *itertools.accumulate(header["stored"].tolist())]
    keys, lengths, texts, extra_lengths, extras, tickets, origins = (
        memoryview(body)[low:high] for low, high in itertools.pairwise(edges)
    )
    num_rows, text_bytes, extra_bytes = (int(header[name]) for name in ("rows", "text_bytes", "extra_bytes"))
    unpack = _decompress if header["is_compressed"] else _unpacked
    return Rows(
        keys=np.frombuffer(keys, "<u8"),
        texts=make_binary(_as_lengths(unpack(lengths, 4 * num_rows)), unpack(texts, text_bytes)),
        extras=make_binary(_as_lengths(unpack(extra_lengths, 4 * num_rows)), unpack(extras, extra_bytes))
        if len(extra_lengths)
        else None,
        tickets=np.frombuffer(tickets, "<u2") if len(tickets) else None,
        origins=np.frombuffer(origins, "<u4") if len(origins) else None,
    )


def _encode_values(values: pa.LargeBinaryArray) -> tuple[bytes, memoryview]:
    """Return the lengths (as ``<u4``) and the bytes of all values."""
    offsets = offsets_of(values)
    return np.diff(offsets).astype("<u4").tobytes(), data_of(values)[offsets[0] : offsets[-1]]


def _num_bytes(parts: Sequence[memoryview]) -> int:
    return sum(part.nbytes for part in parts)


def _compress(parts: Sequence[memoryview]) -> list[memoryview]:
    data = b"".join(parts)
    return [memoryview(_CODEC.compress(data, asbytes=False))] if data else []


def _decompress(data: memoryview, num_bytes: int) -> pa.Buffer:
    return _CODEC.decompress(data, num_bytes) if num_bytes else pa.py_buffer(b"")


def _unpacked(data: memoryview, _: int) -> pa.Buffer:
    return pa.py_buffer(data)


def _as_lengths(data: pa.Buffer) -> npt.NDArray[np.uint32]:
    return np.frombuffer(data, "<u4")
