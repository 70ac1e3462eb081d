"""Turns lines into records without a Python loop over them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.corpus.lines import LineBlock
from kexue_train.corpus.records import RecordBlock, make_block


def parse_text(block: LineBlock, positions: npt.NDArray[np.uint64]) -> RecordBlock:
    """Every line is a text, without its line end; ``positions`` has shape (n,) for n lines."""
    starts, ends = _without_newlines(block)
    if b"\r" in block.data:
        octets = np.frombuffer(block.data, np.uint8)
        ends = ends - ((ends > starts) & (octets[np.maximum(ends - 1, 0)] == ord("\r")))
    is_utf8 = _is_utf8(block.data)  # checked at once, as no character of several bytes holds that of a newline
    return make_block(positions, _pack(block.data, starts, ends).view(pa.large_string()), is_utf8=is_utf8)


def parse_raw(block: LineBlock, positions: npt.NDArray[np.uint64]) -> RecordBlock:
    r"""Every line is a record whatever it holds; only ``\n`` is taken off."""
    return RecordBlock(positions, _pack(block.data, *_without_newlines(block)))


def _without_newlines(block: LineBlock) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    ends = block.bounds[1:] - 1
    if not block.data.endswith(b"\n"):  # only the last line of a file may lack it
        ends[-1] += 1
    return block.bounds[:-1], ends


def _pack(data: bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> pa.LargeBinaryArray:
    """An array of ``data[starts[i]:ends[i]]``."""
    # Alternate text and gap, then keep every other value: one pass of Arrow's take instead of a Python loop.
    offsets = np.empty(2 * len(starts) + 1, np.int64)
    offsets[:-1:2], offsets[1::2], offsets[-1] = starts, ends, len(data)
    alternating = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), 2 * len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
    return alternating.take(pa.array(np.arange(0, 2 * len(starts), 2)))


def _is_utf8(data: bytes) -> bool:
    offsets = np.array([0, len(data)], np.int64)
    try:
        pa.LargeStringArray.from_buffers(1, pa.py_buffer(offsets), pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
