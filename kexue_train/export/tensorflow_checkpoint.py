"""Read the tensors of a TensorFlow checkpoint (``NAME.index`` and ``NAME.data-00000-of-00001``) without TensorFlow.

The index is a table of LevelDB: blocks of sorted keys, each key without the beginning it shares with the one before;
an index of the blocks; a footer. Under the empty key is a BundleHeaderProto, under every other, which is a tensor's
name, a BundleEntryProto that says where in the data files its bytes lie. Block and tensor carry a masked CRC-32C each.
Source: tensorflow/core/lib/io/format.cc, tensorflow/core/protobuf/tensor_bundle.proto,
https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kexue_train.export.crc32c import crc32c, unmask
from kexue_train.foundation.errors import ArtifactError

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # compression, checksum
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 9: "<i8", 19: "<f2"}
"""DataType of TensorFlow -> NumPy; weights of a model are of no other."""


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies."""

    dtype: int
    """DataType of TensorFlow."""
    shape: tuple[int, ...]
    shard: int
    offset: int
    num_bytes: int
    checksum: int
    """CRC-32C of the bytes."""
    is_sliced: bool
    """Cut into pieces that are stored apart."""


class TensorFlowCheckpoint:
    """A checkpoint's tensors by name; opening it reads the index alone.

    Args:
        index: Path of the ``.index`` file.

    Raises:
        ArtifactError: If the file is damaged or of another kind.
    """

    def __init__(self, index: Path) -> None:
        self.path = index
        try:
            values = dict(_read_table(index.read_bytes()))
            self._num_shards = _read_header(values.pop(b""))
            self.entries = {key.decode(): _read_entry(value) for key, value in values.items()}
        except (IndexError, KeyError, UnicodeDecodeError, ValueError, pa.ArrowException) as error:
            raise ArtifactError(
                f"{index}: not a readable index of a TensorFlow checkpoint ({error}); copy the file again"
            ) from None

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Read one tensor, as a copy.

        Raises:
            ArtifactError: If its file is missing or too short, its checksum wrong, or its kind not a weight's.
        """
        entry = self.entries[name]
        if entry.dtype not in _DTYPES or entry.is_sliced:
            what = "is stored in slices" if entry.is_sliced else f"has TensorFlow's data type {entry.dtype}"
            raise ArtifactError(f"{self.path}: tensor '{name}' {what}; save the checkpoint with whole float tensors")
        path = self.path.with_suffix(f".data-{entry.shard:05d}-of-{self._num_shards:05d}")
        try:
            with path.open("rb") as file:
                file.seek(entry.offset)
                octets = file.read(entry.num_bytes)
        except FileNotFoundError:
            raise ArtifactError(f"{path}: no such file, but it should hold tensor '{name}'; copy it, too") from None
        if len(octets) != entry.num_bytes or crc32c(octets) != entry.checksum:
            raise ArtifactError(f"{path}: checksum mismatch in tensor '{name}', so the file is damaged; copy it again")
        values = np.frombuffer(octets, _DTYPES[entry.dtype])
        if values.size != np.prod(entry.shape, dtype=np.int64):
            raise ArtifactError(f"{path}: tensor '{name}' has {values.size} values, not the {entry.shape} of the index")
        return values.reshape(entry.shape).copy()


def _read_header(message: bytes) -> int:
    """Return the number of data files."""
    fields = dict(_fields(message))
    if fields.get(2, 0) != 0:
        raise ValueError("written on a big-endian machine")
    return int(fields.get(1, 0))


def _read_entry(message: bytes) -> TensorEntry:
    shape: list[int] = []
    is_sliced = False
    numbers: dict[int, int] = {}
    for field, value in _fields(message):
        if field == 2 and isinstance(value, bytes):
            shape = [int(dict(_fields(dim)).get(1, 0)) for number, dim in _fields(value) if number == 2]  # type: ignore[arg-type]
        elif isinstance(value, int):
            numbers[field] = value
        is_sliced |= field == 7
    dtype, shard, offset, size, checksum = (numbers.get(field, 0) for field in (1, 3, 4, 5, 6))
    return TensorEntry(dtype, tuple(shape), shard, offset, size, unmask(checksum), is_sliced)


def _read_table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield all (key, value) pairs of a table."""
    footer = content[-_FOOTER_BYTES:]
    if not footer.endswith(_MAGIC):
        raise ValueError("its end is not that of an index")
    at = 0
    for _ in range(2):  # of the block of meta data, which is empty
        _, at = _varint(footer, at)
    for _, handle in _entries(_block(content, footer[at:])):
        yield from _entries(_block(content, handle))


def _block(content: bytes, handle: bytes) -> bytes:
    offset, at = _varint(handle, 0)
    size, _ = _varint(handle, at)
    body, end = content[offset : offset + size + 1], offset + size + _TRAILER_BYTES
    if end > len(content) or unmask(int.from_bytes(content[end - 4 : end], "little")) != crc32c(body):
        raise ValueError(f"checksum mismatch in the block at byte {offset}")
    match body[-1]:
        case 0:
            return body[:-1]
        case 1:  # Snappy; its own beginning tells the size
            size, _ = _varint(body, 0)
            return bytes(pa.decompress(body[:-1], decompressed_size=size, codec="snappy"))
        case unknown:
            raise ValueError(f"the block at byte {offset} has the unknown compression {unknown}")


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) pairs; the restart points at the end are not needed to read everything."""
    end = len(block) - 4 * (int.from_bytes(block[-4:], "little") + 1)
    at, key = 0, b""
    while at < end:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        size, at = _varint(block, at)
        key = key[:shared] + block[at : at + unshared]
        yield key, block[at + unshared : at + unshared + size]
        at += unshared + size


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of each field of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag >> 3, value
            case 1 | 5 as width:
                size = 8 if width == 1 else 4
                yield tag >> 3, int.from_bytes(message[at : at + size], "little")
                at += size
            case 2:
                size, at = _varint(message, at)
                yield tag >> 3, message[at : at + size]
                at += size
            case unknown:
                raise ValueError(f"unknown wire type {unknown}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at``, seven bits a byte, and the place after it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
