"""Arrow arrays over NumPy arrays and bytes.

``pyarrow.array`` and ``to_numpy`` do the same, but load pandas first where that is installed, to see whether they were
given something of it: half of the time that a process takes to start.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def to_arrow(values: npt.NDArray[np.number]) -> pa.Array:
    """Return an array over ``values`` of shape (n,), which lie one after the other; nothing is copied."""
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def to_mask(chosen: npt.NDArray[np.bool_]) -> pa.BooleanArray:
    """Return a mask for ``filter``; ``chosen`` has shape (n,)."""
    bits = np.packbits(chosen, bitorder="little")
    return pa.Array.from_buffers(pa.bool_(), len(chosen), [None, pa.py_buffer(bits)])


def from_mask(mask: pa.BooleanArray) -> npt.NDArray[np.bool_]:
    """Return the values of a mask without nulls, shape (n,)."""
    bits = np.frombuffer(mask.buffers()[1], np.uint8)
    return np.unpackbits(bits, bitorder="little")[mask.offset : mask.offset + len(mask)].astype(bool)


def to_binary(values: Sequence[bytes]) -> pa.LargeBinaryArray:
    """Return ``values`` as an array."""
    return make_binary(np.fromiter(map(len, values), np.int64, len(values)), pa.py_buffer(b"".join(values)))


def make_binary(lengths: npt.NDArray[np.integer], data: pa.Buffer | npt.NDArray[np.uint8]) -> pa.LargeBinaryArray:
    """Return an array over ``data``, whose values of these lengths lie one after the other; nothing is copied."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)


def offsets_of(values: pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    """Return offsets of shape (n + 1,): value i is ``data_of(values)[offsets[i]:offsets[i + 1]]``."""
    return np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]


def data_of(values: pa.LargeBinaryArray) -> memoryview:
    """Return the bytes that ``offsets_of`` counts in."""
    data = values.buffers()[2]
    return memoryview(data) if data is not None else memoryview(b"")


def lengths_of(values: pa.LargeBinaryArray) -> npt.NDArray[np.int64]:
    """Return the bytes of each value: (n,)."""
    return np.diff(offsets_of(values)) if len(values) else np.zeros(0, np.int64)


def values_bytes(values: pa.LargeBinaryArray) -> int:
    """Return the bytes of all values together."""
    offsets = offsets_of(values) if len(values) else np.zeros(1, np.int64)
    return int(offsets[-1] - offsets[0])
