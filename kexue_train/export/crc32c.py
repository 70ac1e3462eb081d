"""CRC-32C (Castagnoli) of large buffers in NumPy: many pieces side by side, then joined.

A cyclic checksum is linear over GF(2). So the registers of equal pieces run in parallel from 0, and two neighbours join
by multiplying the left one with the matrix that appends as many zero bytes as the right one has.
Source: RFC 3720, appendix B.4; zlib's crc32_combine for the joining.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_Words = NDArray[np.uint32]
_POLYNOMIAL = 0x82F63B78
_PIECE = 1024  # bytes of a piece; a power of two


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of ``data``; ``crc32c(b"123456789") == 0xE3069283``."""
    octets = np.frombuffer(data, np.uint8)
    # Zeros in front leave a register of 0 as it is, so they make the number of pieces a power of two.
    pieces = 1 << max(0, (len(octets) - 1) // _PIECE).bit_length()
    padded = np.zeros(pieces * _PIECE, np.uint8)
    padded[len(padded) - len(octets) :] = octets
    registers, zeros = _run(np.zeros(pieces, np.uint32), padded.reshape(pieces, _PIECE)), _zeros_matrix(_PIECE)
    while len(registers) > 1:
        registers = _multiply(zeros, registers[0::2]) ^ registers[1::2]
        zeros = _multiply(zeros, zeros)
    # The register starts with all bits set, not with 0: that is what it adds, moved past the whole of data.
    return int(registers[0] ^ _multiply(_zeros_matrix(len(octets)), np.array([0xFFFFFFFF], np.uint32))[0]) ^ 0xFFFFFFFF


def unmask(masked: int) -> int:
    """Recover the checksum from the masked form in which TensorFlow's and LevelDB's files store it."""
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def _make_table() -> _Words:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ np.where(table & np.uint32(1), np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


_TABLE = _make_table()


def _run(registers: _Words, pieces: NDArray[np.uint8]) -> _Words:
    """Feed row i of ``pieces`` [n, bytes] into register i."""
    for column in np.ascontiguousarray(pieces.T):
        registers = _TABLE[(registers ^ column) & np.uint32(0xFF)] ^ (registers >> np.uint32(8))
    return registers


def _multiply(matrix: _Words, vectors: _Words) -> _Words:
    """Multiply a matrix [32 columns] with each vector [n], over GF(2)."""
    product = np.zeros_like(vectors)
    for bit, column in enumerate(matrix):
        product ^= np.where(vectors >> np.uint32(bit) & np.uint32(1), column, np.uint32(0))
    return product


def _zeros_matrix(num_bytes: int) -> _Words:
    """Return the matrix of what ``num_bytes`` zero bytes do to a register."""
    result = np.uint32(1) << np.arange(32, dtype=np.uint32)
    step = _run(result, np.zeros((32, 1), np.uint8))
    while num_bytes:
        if num_bytes & 1:
            result = _multiply(step, result)
        step = _multiply(step, step)
        num_bytes >>= 1
    return result
