"""The form of a sample shard: the columns of a row.

A row is a pack of exactly ``seq_len`` slots: sequences ``[CLS] A [SEP] B [SEP]`` or ``[CLS] A [SEP]`` one after the
other, then [PAD] (id 0). Columns:

* ``input_ids``: fixed_size_list<uint16 or uint32>[seq_len]; uint16 if the vocabulary has at most 65 536 pieces.
* ``sequence_lengths``: list<uint16>, tokens of each sequence in order; their sum is the number of real tokens.
* ``segment_a_lengths``: list<uint16>, per sequence the length of ``[CLS] A [SEP]``; all of a single sequence.
* ``next_sentence_labels``: list<int8>, per sequence 0 = B is next, 1 = B is from another document, -100 = no B.
* ``word_starts``: fixed_size_list<uint8>[ceil(seq_len / 8)], one bit per slot (bit k of byte b is slot 8b + k): set
  where a word starts, at every special token and at the first [PAD]; a word is [start, next start).
* of a mixture also ``segment_a_sources`` and ``segment_b_sources``: list<uint16>, per sequence the numbers of the
  sources that A and B are from, in the order of ``sources`` in the manifest; without a B that of A twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.foundation.arrow_arrays import data_of, lengths_of, make_binary, offsets_of

COUNTS_NAME = "token_counts.npy"
"""Beside the shards: occurrences of each id in the training rows."""
TOKENIZER_NAME = "tokenizer"
"""The tokenizer travels with the samples, since training writes it into every checkpoint."""
PAD_ID = 0
RAGGED_COLUMNS = ("sequence_lengths", "segment_a_lengths", "next_sentence_labels")
SOURCE_COLUMNS = ("segment_a_sources", "segment_b_sources")
"""Columns of a mixture."""
_FIXED_COLUMNS = ("input_ids", "word_starts")


def ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the concatenation of ``arange(start, start + length)``: shape (sum of lengths,), int64."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)


def id_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """Return uint16 if it holds every id, else uint32."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def sample_schema(seq_len: int, vocab_size: int, *, has_sources: bool = False) -> pa.Schema:
    """Return the Arrow schema of sample shards; ``has_sources`` if they are made from a mixture."""
    sources = [(name, pa.list_(pa.uint16())) for name in SOURCE_COLUMNS] if has_sources else []
    return pa.schema(
        [
            ("input_ids", pa.list_(pa.from_numpy_dtype(np.dtype(id_dtype(vocab_size))), seq_len)),
            ("sequence_lengths", pa.list_(pa.uint16())),
            ("segment_a_lengths", pa.list_(pa.uint16())),
            ("next_sentence_labels", pa.list_(pa.int8())),
            ("word_starts", pa.list_(pa.uint8(), (seq_len + 7) // 8)),
            *sources,
        ]
    )


def ragged_columns(schema: pa.Schema) -> tuple[str, ...]:
    """Return the columns with a value for each sequence."""
    return (*RAGGED_COLUMNS, *(name for name in SOURCE_COLUMNS if name in schema.names))


def column_values(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the flat values of a list column without nulls (no copy) and the (rows + 1,) int64 borders of its rows."""
    if pa.types.is_fixed_size_list(column.type):
        borders = np.arange(len(column) + 1, dtype=np.int64) * column.type.list_size
    else:
        borders = column.offsets.to_numpy().astype(np.int64)
        borders -= borders[0]
    return column.flatten().to_numpy(zero_copy_only=True), borders


def rows_to_bytes(batch: pa.RecordBatch) -> pa.LargeBinaryArray:
    """Encode each row as bytes: what its hash is taken of, and how it travels when rows of all shards are mixed.

    The bytes are ids, word starts (both of fixed size), then, for the k sequences of the row, k lengths, k lengths of
    A, k labels, and of a mixture k sources of A and k of B; all as in the columns of the batch, little-endian.
    """
    parts = []
    for name in (*_FIXED_COLUMNS, *ragged_columns(batch.schema)):
        values, borders = column_values(batch.column(name))
        parts.append(make_binary(np.diff(borders) * values.itemsize, np.ascontiguousarray(values).view(np.uint8)))
    return pc.binary_join_element_wise(*parts, pa.scalar(b"", pa.large_binary()))


def rows_from_bytes(rows: pa.LargeBinaryArray, schema: pa.Schema) -> pa.RecordBatch:
    """Decode the rows that ``rows_to_bytes`` encoded."""
    columns, offset = {}, 0
    data = np.frombuffer(data_of(rows), np.uint8)
    starts, sizes = offsets_of(rows)[: len(rows)], lengths_of(rows)

    def cut(widths: npt.NDArray[np.int64], kind: pa.DataType) -> pa.Array:
        """Return the next so many bytes of each row, as values."""
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
    ragged = {name: schema.field(name).type.value_type for name in ragged_columns(schema)}
    counts = (sizes - offset) // sum(kind.bit_width // 8 for kind in ragged.values())
    borders = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    for name, kind in ragged.items():
        columns[name] = pa.ListArray.from_arrays(borders, cut(counts * (kind.bit_width // 8), kind))
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
