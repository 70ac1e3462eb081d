"""A frame: some rows of one bucket as bytes, each column on its own, texts compressed or not, with a checksum.

header | keys | text lengths | texts | extra lengths | extras | tickets | origins        (columns may be empty)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from kexue_train.shuffle.rows import Rows, data_of, make_binary, offsets_of

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


class DamagedFrameError(Exception):
    """The bytes are not those that were written."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The rows ``[low, high)`` of ``rows``."""

    rows: Rows
    low: int
    high: int

    @property
    def text_bytes(self) -> int:
        """Bytes of the texts."""
        offsets = offsets_of(self.rows.texts)
        return int(offsets[self.high] - offsets[self.low])


def encode_frame(parts: Sequence[Slice], *, compress: bool) -> tuple[list[Any], int]:
    """The buffers of the frame that holds these rows, one after the other, and the bytes of its texts and extras."""
    pack = _compress if compress else _keep
    lengths, texts = _join_values([(part.rows.texts, part.low, part.high) for part in parts])
    kept = [(part.rows.extras, part.low, part.high) for part in parts if part.rows.extras is not None]
    extra_lengths, extras = _join_values(kept)
    columns = [
        _join_numbers([part.rows.keys[part.low : part.high] for part in parts]),
        pack(lengths),
        pack(texts),
        pack(extra_lengths),
        pack(extras),
        _join_numbers([part.rows.tickets[part.low : part.high] for part in parts if part.rows.tickets is not None]),
        _join_numbers([part.rows.origins[part.low : part.high] for part in parts if part.rows.origins is not None]),
    ]
    checksum = xxhash.xxh3_64()
    for column in columns:
        checksum.update(column)
    header = np.zeros((), HEADER)
    header["rows"] = sum(part.high - part.low for part in parts)
    header["text_bytes"], header["extra_bytes"], header["is_compressed"] = len(texts), len(extras), compress
    header["stored"], header["checksum"] = [len(column) for column in columns], checksum.intdigest()
    return [header.tobytes(), *columns], len(texts) + len(extras)


def body_bytes(header: bytes) -> int:
    """How many bytes follow this header."""
    return int(np.frombuffer(header, HEADER)[0]["stored"].sum())


def decode_frame(header_bytes: bytes, body: bytes | memoryview) -> Rows:
    """The rows of a frame.

    Raises:
        DamagedFrameError: If the checksum differs.
    """
    header = np.frombuffer(header_bytes, HEADER)[0]
    if len(body) != body_bytes(header_bytes) or xxhash.xxh3_64_intdigest(body) != int(header["checksum"]):
        raise DamagedFrameError
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


def _join_values(parts: list[tuple[pa.LargeBinaryArray, int, int]]) -> tuple[bytes, bytes]:
    """The lengths (as ``<u4``) and the bytes of the values ``[low, high)`` of several arrays."""
    lengths, data = [], []
    for values, low, high in parts:
        offsets = offsets_of(values)
        lengths.append(np.diff(offsets[low : high + 1]).astype("<u4").tobytes())
        data.append(data_of(values)[offsets[low] : offsets[high]])
    return b"".join(lengths), b"".join(data)


def _join_numbers(parts: list[npt.NDArray[Any]]) -> bytes:
    return b"".join(part.tobytes() for part in parts)


def _compress(data: bytes) -> Any:
    return _CODEC.compress(data, asbytes=False) if data else b""


def _keep(data: bytes) -> Any:
    return data


def _decompress(data: memoryview, num_bytes: int) -> pa.Buffer:
    return _CODEC.decompress(data, num_bytes) if num_bytes else pa.py_buffer(b"")


def _unpacked(data: memoryview, _: int) -> pa.Buffer:
    return pa.py_buffer(data)


def _as_lengths(data: pa.Buffer) -> npt.NDArray[np.uint32]:
    return np.frombuffer(data, "<u4")
