"""Sequences -> rows of exactly ``seq_len`` slots (best-fit decreasing) -> record batches of sample rows, vectorised.

Source: best-fit packing as in Krell et al., "Efficient sequence packing without cross-contamination" (2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.counter_rng import Purpose, random_words
from kexue_train.samples.encode import Documents
from kexue_train.samples.nsp import Sequences
from kexue_train.samples.schema import PAD_ID, ranges, sample_schema

SLOTS_PER_BATCH = 1 << 20


def pack(lengths: npt.NDArray[np.int64], seq_len: int) -> tuple[npt.NDArray[np.int64], int]:
    """Return the row of each sequence, (n,) int64, and the number of rows.

    From the longest down, each sequence goes into the fullest row that still holds it, else into a new one. The rooms
    left are bits of one integer, so the fullest row that fits is found without a search: for ``length`` 3 and rows with
    room for 2, 5 and 9, ``rooms`` is 0b1000100100; shifted by 3 its lowest set bit is bit 2, so the room is 3 + 2 = 5.
    """
    rows = np.zeros(len(lengths), np.int64)
    order = np.argsort(-lengths, kind="stable")
    rows_by_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit r is set while a row with room for r more tokens exists
    num_rows = 0
    for sequence, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = seq_len, num_rows
            num_rows += 1
        rows[sequence] = row
        if room > length:
            rows_by_room[room - length].append(row)
            rooms |= 1 << (room - length)
    return rows, num_rows


def permute_rows(rows: npt.NDArray[np.int64], num_rows: int, *, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """Return ``rows`` after a uniform random permutation of the row numbers, which mixes full and joined rows.

    Args:
        rows: (n,) row of each sequence.
        num_rows: Rows in all.
        seed: The run's seed.
        stream: Which group of rows (a shard, its held-out part).
    """
    words = random_words(seed, Purpose.PACKING, stream, np.arange(num_rows, dtype=np.uint64))
    new_place = np.empty(num_rows, np.int64)
    new_place[np.lexsort(words)] = np.arange(num_rows)
    return new_place[rows]


def row_batches(
    documents: Documents,
    sequences: Sequences,
    rows: npt.NDArray[np.int64],
    num_rows: int,
    *,
    seq_len: int,
    vocab_size: int,
    special_token_ids: Mapping[str, int],
    sources: npt.NDArray[np.integer[Any]] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Lay sequences out in their rows and yield the rows in order, about a million slots at a time.

    Args:
        documents: Where the tokens are.
        sequences: What to lay out.
        rows: (sequences,) row of each; sequences of one row keep their order.
        num_rows: Rows in all.
        seq_len: Slots of a row; the sequences of a row fit into them.
        vocab_size: Decides the type of the ids.
        special_token_ids: Name -> id of "cls" and "sep".
        sources: (documents,) number of each document's source in a mixture; None: there is none.
    """
    order = np.argsort(rows, kind="stable")
    rows = rows[order]
    schema = sample_schema(seq_len, vocab_size, has_sources=sources is not None)
    rows_per_batch = max(1, SLOTS_PER_BATCH // seq_len)
    for first in range(0, num_rows, rows_per_batch):
        last = min(first + rows_per_batch, num_rows)
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
                *(pa.ListArray.from_arrays(borders, numbers) for numbers in _sources(documents, part, sources)),
            ],
            schema=schema,
        )


def _sources(documents: Documents, part: Sequences, sources: npt.NDArray[np.integer[Any]] | None) -> Iterator[pa.Array]:
    """Yield the numbers of the sources of A and of B; nothing without sources."""
    if sources is None:
        return
    for starts in (part.a_starts, np.where(part.b_lengths > 0, part.b_starts, part.a_starts)):
        # Of documents that begin at one place the last is the one that is not empty.
        yield pa.array(sources[np.searchsorted(documents.offsets, starts, "right") - 1].astype(np.uint16))


def _lay_out(
    documents: Documents,
    part: Sequences,
    rows: npt.NDArray[np.int64],
    num_rows: int,
    seq_len: int,
    special_token_ids: Mapping[str, int],
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
    """Return ids (num_rows, seq_len) and packed word starts (num_rows, ceil(seq_len / 8)) of the sequences ``part``."""
    lengths = part.lengths
    row_lengths = np.bincount(rows, lengths, num_rows).astype(np.int64)
    padding = seq_len - row_lengths
    # Slots of all rows are numbered through, so the [CLS] of a sequence lies behind all sequences before it and behind
    # the padding of all rows before its own. Rows of 8 with lengths (5 | 3, 4): padding 3 and 1, [CLS] at 0, 8 and 11.
    cls = np.cumsum(lengths) - lengths + (np.cumsum(padding) - padding)[rows]
    sep = cls + part.a_lengths + 1
    is_pair = part.b_lengths > 0
    is_text = (np.arange(seq_len) < row_lengths[:, None]).ravel()
    ids = np.full(num_rows * seq_len, PAD_ID, documents.token_ids.dtype)
    word_starts = np.zeros(num_rows * seq_len, np.bool_)
    for slots, name in ((cls, "cls"), (sep, "sep"), ((sep + part.b_lengths + 1)[is_pair], "sep")):
        ids[slots] = special_token_ids[name]
        word_starts[slots] = True
        is_text[slots] = False
    # A, B, A, B...: the order in which their tokens come.
    starts, tokens = (
        np.stack(pair, axis=1).ravel() for pair in ((part.a_starts, part.b_starts), (part.a_lengths, part.b_lengths))
    )
    source = ranges(starts, tokens)
    ids[is_text] = documents.token_ids[source]
    word_starts[is_text] = documents.word_starts[source]
    for slots in (cls + 1, (sep + 1)[is_pair]):
        word_starts[slots] = True  # the rest of a word cut by a border is a word of its own
    padded = np.flatnonzero(row_lengths < seq_len)
    word_starts[padded * seq_len + row_lengths[padded]] = True
    packed = np.packbits(word_starts.reshape(num_rows, seq_len), axis=1, bitorder="little")
    return ids.reshape(num_rows, seq_len), packed
