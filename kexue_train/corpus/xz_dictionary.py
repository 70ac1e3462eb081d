"""How much memory xz and lzma data take to be unpacked: their dictionary, whose size stands at their start.

Sources: sections 3.1 and 5.3.1 of xz-file-format.txt and lzma-file-format.txt of github.com/tukaani-project/xz.
"""

from __future__ import annotations

from kexue_train.corpus.compressed_frames import MAX_WINDOW_BYTES
from kexue_train.corpus.streams import read_head
from kexue_train.foundation.errors import MemoryLimitError
from kexue_train.foundation.runtime import format_size

_STREAM_HEADER_BYTES = 12
_MAX_HEAD_BYTES = _STREAM_HEADER_BYTES + 1024
_LZMA2 = 0x21


def check_dictionary(path: str, compression: str | None, memory_bytes: int) -> None:
    """Refuse xz or lzma data whose dictionary is larger than ``memory_bytes`` and than the windows of zstd can be.

    Raises:
        MemoryLimitError: If it is.
        CorpusError: If the file cannot be read.
    """
    if compression not in _SIZES:
        return
    need_bytes = _SIZES[compression](read_head(path, _MAX_HEAD_BYTES))
    if need_bytes > max(memory_bytes, MAX_WINDOW_BYTES):
        raise MemoryLimitError(
            f"{path}: is {compression} data with a dictionary of {format_size(need_bytes)}, and "
            f"{format_size(memory_bytes)} of memory are there for it; give it unpacked (xz -d {path})",
            need_bytes,
        )


def lzma_dictionary(head: bytes) -> int:
    """Return the bytes of the dictionary of lzma data that begins with ``head``."""
    return int.from_bytes(head[1:5], "little")


def xz_dictionary(head: bytes) -> int:
    """Return the bytes of the dictionary of the first block of xz data that begins with ``head``; 0 without a block."""
    block = head[_STREAM_HEADER_BYTES:]
    flags, at = int.from_bytes(block[1:2], "little"), 2
    for flag in (0x40, 0x80):  # sizes of the block, packed and unpacked
        if flags & flag:
            _, at = _number(block, at)
    for _ in range((flags & 3) + 1):
        name, at = _number(block, at)
        length, at = _number(block, at)
        if name == _LZMA2 and block[at : at + 1]:
            code = block[at] & 0x3F
            return (2 | (code & 1)) << (code // 2 + 11)
        at += length
    return 0


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at``, in groups of 7 bits with the lowest first, and where it ends."""
    value = shift = 0
    for octet in data[at : at + 9]:
        value |= (octet & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not octet & 0x80:
            break
    return value, at


_SIZES = {"xz": xz_dictionary, "lzma": lzma_dictionary}
