"""Packed sequences -> record batches of sample rows, vectorised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.samples.encode import Documents, ranges
from kexue_train.samples.nsp import Sequences
from kexue_train.samples.schema import PAD_ID, sample_schema

ROWS_PER_BATCH = 4096


def row_batches(
    documents: Documents,
    sequences: Sequences,
    rows: npt.NDArray[np.int64],
    num_rows: int,
    *,
    seq_len: int,
    vocab_size: int,
    special_token_ids: Mapping[str, int],
) -> Iterator[pa.RecordBatch]:
    """Lay sequences out in their rows and yield the rows in order, some thousands at a time.

    Args:
        documents: Where the tokens are.
        sequences: What to lay out.
        rows: (sequences,) row of each; sequences of one row keep their order.
        num_rows: Rows in all.
        seq_len: Slots of a row; the sequences of a row fit into them.
        vocab_size: Decides the type of the ids.
        special_token_ids: Name -> id of "cls" and "sep".
    """
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    schema = sample_schema(seq_len, vocab_size)
    for first in range(0, num_rows, ROWS_PER_BATCH):
        last = min(first + ROWS_PER_BATCH, num_rows)
        inside = slice(*np.searchsorted(rows, [first, last]).tolist())
        part = sequences.take(order[inside])
        ids, starts = _lay_out(documents, part, rows[inside] - first, last - first, seq_len, special_token_ids)
        borders = np.searchsorted(rows[inside], np.arange(first, last + 1)).astype(np.int32)
        segment_a = np.where(part.b_lengths > 0, part.a_lengths + 2, part.lengths)
        yield pa.RecordBatch.from_arrays(
            [
                pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), seq_len),
                pa.ListArray.from_arrays(borders, pa.array(part.lengths.astype(np.uint16))),
                pa.ListArray.from_arrays(borders, pa.array(segment_a.astype(np.uint16))),
                pa.ListArray.from_arrays(borders, pa.array(part.labels.astype(np.int8))),
                pa.FixedSizeListArray.from_arrays(pa.array(starts.ravel()), starts.shape[1]),
            ],
            schema=schema,
        )


def _lay_out(
    documents: Documents,
    part: Sequences,
    rows: npt.NDArray[np.int64],
    num_rows: int,
    seq_len: int,
    special_token_ids: Mapping[str, int],
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Ids (num_rows, seq_len) and packed word starts (num_rows, ceil(seq_len / 8)) of the sequences ``part``."""
    ids = np.full(num_rows * seq_len, PAD_ID, documents.token_ids.dtype)
    word_starts = np.zeros(num_rows * seq_len, np.bool_)
    lengths = part.lengths
    row_lengths = np.bincount(rows, lengths, num_rows).astype(np.int64)
    before = np.cumsum(lengths) - lengths
    cls = before + rows * seq_len - (np.cumsum(row_lengths) - row_lengths)[rows]
    sep = cls + part.a_lengths + 1
    last_sep = (sep + part.b_lengths + 1)[part.b_lengths > 0]
    for starts, tokens, places in ((part.a_starts, part.a_lengths, cls + 1), (part.b_starts, part.b_lengths, sep + 1)):
        source, target = ranges(starts, tokens), ranges(places, tokens)
        ids[target] = documents.token_ids[source]
        word_starts[target] = documents.word_starts[source]
        word_starts[places[tokens > 0]] = True  # the rest of a word cut by a border is a word of its own
    for places, name in ((cls, "cls"), (sep, "sep"), (last_sep, "sep")):
        ids[places] = special_token_ids[name]
        word_starts[places] = True
    padded = np.flatnonzero(row_lengths < seq_len)
    word_starts[padded * seq_len + row_lengths[padded]] = True
    packed = np.packbits(word_starts.reshape(num_rows, seq_len), axis=1, bitorder="little")
    return ids.reshape(num_rows, seq_len), packed
