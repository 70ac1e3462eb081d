"""The order-independent checksum of rows by its definition: the sum of their xxh3_128 hashes modulo 2¹²⁸."""

from __future__ import annotations

from collections.abc import Iterable

import xxhash


def text_hashes(texts: Iterable[bytes | memoryview]) -> list[int]:
    """Return the hash of each text's UTF-8 bytes."""
    return [xxhash.xxh3_128_intdigest(text) for text in texts]


def sum_hashes(hashes: Iterable[int]) -> int:
    """Return the sum modulo 2¹²⁸: equal for equal multisets, whatever the order."""
    return sum(hashes) % (1 << 128)
