from __future__ import annotations

from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples.schema import rows_from_bytes, rows_to_bytes, sample_schema

SEQ_LEN = 11  # no multiple of eight


def rows_of(counts: list[int], vocab_size: int, seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "input_ids": rng.integers(0, vocab_size, SEQ_LEN).tolist(),
            "sequence_lengths": rng.integers(1, 60_000, count).tolist(),
            "segment_a_lengths": rng.integers(1, 60_000, count).tolist(),
            "next_sentence_labels": rng.choice([-100, 0, 1], count).tolist(),
            "word_starts": rng.integers(0, 256, 2).tolist(),
        }
        for count in counts
    ]
    return pa.RecordBatch.from_pylist(rows, schema=sample_schema(SEQ_LEN, vocab_size))


def bytes_by_hand(row: dict, id_bytes: int) -> bytes:
    fields = [
        *((value, id_bytes) for value in row["input_ids"]),
        *((value, 1) for value in row["word_starts"]),
        *((value, 2) for value in chain(row["sequence_lengths"], row["segment_a_lengths"])),
        *((value, 1) for value in row["next_sentence_labels"]),
    ]
    return b"".join(value.to_bytes(size, "little", signed=value < 0) for value, size in fields)


CASES = (st.lists(st.integers(1, 5), max_size=9), st.sampled_from([99, 65_536, 65_537, 100_000]), st.integers(0, 99))


@given(*CASES)
def test_bytes_are_those_of_the_columns(counts: list[int], vocab_size: int, seed: int) -> None:
    batch = rows_of(counts, vocab_size, seed)
    expected = [bytes_by_hand(row, 2 if vocab_size <= 65_536 else 4) for row in batch.to_pylist()]
    assert rows_to_bytes(batch).to_pylist() == expected


@given(*CASES)
def test_rows_come_back_from_their_bytes(counts: list[int], vocab_size: int, seed: int) -> None:
    batch = rows_of(counts, vocab_size, seed)
    assert rows_from_bytes(rows_to_bytes(batch), batch.schema).equals(batch)


@pytest.mark.parametrize("part", [slice(0, 2), slice(1, 4), slice(3, 3)])
def test_a_slice_is_as_good_as_a_whole(part: slice) -> None:
    batch = rows_of([1, 3, 2, 5], 99, 0)
    rows = rows_to_bytes(batch)
    length = part.stop - part.start
    assert rows_to_bytes(batch.slice(part.start, length)).to_pylist() == rows.to_pylist()[part]
    found = rows_from_bytes(rows.slice(part.start, length), batch.schema)
    assert found.to_pylist() == batch.to_pylist()[part]
