"""A sample row as bytes: what its hash is taken of, and how it travels when rows of all shards are mixed.

ids, word starts (both of fixed size), then, for the k sequences of the row, k lengths, k lengths of A, k labels; all as
in the columns of ``schema.py``, little-endian.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.samples.ragged import ranges
from kexue_train.samples.schema import RAGGED_COLUMNS, column_values
from kexue_train.shuffle.rows import data_of, lengths_of, make_binary, offsets_of

_FIXED_COLUMNS = ("input_ids", "word_starts")


def rows_to_bytes(batch: pa.RecordBatch) -> pa.LargeBinaryArray:
    """The bytes of each row."""
    parts = []
    for name in (*_FIXED_COLUMNS, *RAGGED_COLUMNS):
        values, borders = column_values(batch.column(name))
        parts.append(make_binary(np.diff(borders) * values.itemsize, np.ascontiguousarray(values).view(np.uint8)))
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))


def rows_from_bytes(rows: pa.LargeBinaryArray, schema: pa.Schema) -> pa.RecordBatch:
    """The rows that ``rows_to_bytes`` made ``rows`` of."""
    columns, offset = {}, 0
    data = np.frombuffer(data_of(rows), np.uint8)
    starts, sizes = offsets_of(rows)[: len(rows)], lengths_of(rows)

    def cut(widths: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
        """The next so many bytes of each row, as values."""
        nonlocal starts
        values = data[ranges(starts, widths)]
        starts = starts + widths
        return pa.array(values.view(kind.to_pandas_dtype()))

    for name in _FIXED_COLUMNS:
        kind = schema.field(name).type
        width = kind.list_size * kind.value_type.bit_width // 8
        columns[name] = pa.FixedSizeListArray.from_arrays(
            cut(np.full(len(rows), width), kind.value_type), kind.list_size
        )
        offset += width
    ragged = {name: schema.field(name).type.value_type for name in RAGGED_COLUMNS}
    counts = (sizes - offset) // sum(kind.bit_width // 8 for kind in ragged.values())
    borders = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    for name, kind in ragged.items():
        columns[name] = pa.ListArray.from_arrays(borders, cut(counts * (kind.bit_width // 8), kind))
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
