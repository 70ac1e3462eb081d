"""TensorFlow's checkpoint files, written from the descriptions of their formats; shares no code with the reader.

Source: https://github.com/google/leveldb/blob/main/doc/table_format.md and tensor_bundle.proto of TensorFlow.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "float16": 19}
RESTART_INTERVAL = 16


def write_checkpoint(
    prefix: Path, tensors: Mapping[str, np.ndarray], *, block_bytes: int = 4096, snappy: bool = False, shards: int = 1
) -> None:
    """Write ``prefix.index`` and ``prefix.data-...``; tensors go to the shards in turn."""
    data = [bytearray() for _ in range(shards)]
    entries = {b"": field(1, shards) + field(3, field(1, 1))}
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        shard, raw = number % shards, tensor.tobytes()
        shape = b"".join(field(2, field(1, size)) for size in tensor.shape)
        entry = field(1, NUMBERS[tensor.dtype.name]) + field(2, shape)
        entry += field(3, shard) if shard else b""
        entry += field(4, len(data[shard])) if data[shard] else b""
        entry += field(5, len(raw)) + bytes([6 << 3 | 5]) + struct.pack("<I", masked_crc32c(raw))
        entries[name.encode()] = entry
        data[shard] += raw
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(entries, block_bytes, snappy))
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(bytes(content))


def table(entries: Mapping[bytes, bytes], block_bytes: int, snappy: bool) -> bytes:
    """Blocks of sorted entries, an empty block of meta data, the index block, the footer."""
    content, index, pending = b"", [], []

    def append(pairs: list[tuple[bytes, bytes]]) -> bytes:
        nonlocal content
        body = block(pairs)
        stored = bytes(pa.compress(body, codec="snappy")) if snappy else body
        handle = varint(len(content)) + varint(len(stored))
        trailed = stored + bytes([int(snappy)])
        content += trailed + struct.pack("<I", masked_crc32c(trailed))
        return handle

    for key, value in sorted(entries.items()):
        pending.append((key, value))
        if sum(len(k) + len(v) for k, v in pending) >= block_bytes:
            index.append((key, append(pending)))
            pending = []
    if pending:
        index.append((pending[-1][0], append(pending)))
    footer = append([]) + append(index)
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
    """Entries without the beginning that a key shares with the one before, whole again at every restart."""
    body, restarts, before = b"", [], b""
    for number, (key, value) in enumerate(pairs):
        shared = 0
        if number % RESTART_INTERVAL == 0:
            restarts.append(len(body))
        else:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return body + struct.pack(f"<{len(restarts)}I", *restarts) + struct.pack("<I", len(restarts))


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer: a number, or a message or text."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def crc32c(data: bytes) -> int:
    """Bit by bit, the definition itself."""
    register = 0xFFFFFFFF
    for octet in data:
        register ^= octet
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
