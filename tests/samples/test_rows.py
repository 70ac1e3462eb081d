from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples import rows as rows_module
from kexue_train.samples.encode import Documents
from kexue_train.samples.nsp import make_sequences
from kexue_train.samples.rows import pack, row_batches
from kexue_train.samples.verify import find_broken_row
from tests.samples.random_documents import random_documents

SPECIALS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def make_rows(lengths: list[int], seq_len: int, seed: int = 0) -> tuple[list[dict], list[pa.RecordBatch]]:
    """Rows laid out by hand, slot by slot, and by ``row_batches``."""
    documents, rng = random_documents(lengths, seed), np.random.default_rng(seed)
    sequences = make_sequences(documents, seq_len=seq_len, nsp=True, short_sequence_probability=0.3, rng=rng)
    rows, num_rows = pack(sequences.lengths, seq_len)
    expected = [{"input_ids": [], "starts": [], "lengths": [], "segment_a": [], "labels": []} for _ in range(num_rows)]
    for row, a, a_length, b, b_length, label in zip(rows, *vars(sequences).values(), strict=True):
        _append(expected[row], documents, range(a, a + a_length), range(b, b + b_length), label)
    batches = list(
        row_batches(documents, sequences, rows, num_rows, seq_len=seq_len, vocab_size=99, special_token_ids=SPECIALS)
    )
    return expected, batches


def _append(row: dict, documents: Documents, a: range, b: range, label: int) -> None:
    before = len(row["input_ids"])
    row["input_ids"].append(2)
    row["starts"].append(True)
    for part in (a, b) if b else (a,):
        for i in part:
            row["input_ids"].append(int(documents.token_ids[i]))
            row["starts"].append(bool(documents.word_starts[i]) or i == part[0])
        row["input_ids"].append(3)
        row["starts"].append(True)
    row["lengths"].append(len(row["input_ids"]) - before)
    row["segment_a"].append(len(a) + 2)
    row["labels"].append(int(label))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sampled_from([16, 21]), st.integers(0, 99))
def test_rows_are_laid_out_as_by_hand(lengths: list[int], seq_len: int, seed: int) -> None:
    expected, batches = make_rows(lengths, seq_len, seed)
    found = [row for batch in batches for row in batch.to_pylist()]
    assert len(found) == len(expected)
    for row, hand in zip(found, expected, strict=True):
        padding = seq_len - len(hand["input_ids"])
        starts = [*hand["starts"], *[i == 0 for i in range(padding)]]
        assert row["input_ids"] == hand["input_ids"] + [0] * padding
        assert row["word_starts"] == np.packbits(starts, bitorder="little").tolist()
        assert row["sequence_lengths"] == hand["lengths"]
        assert row["segment_a_lengths"] == hand["segment_a"]
        assert row["next_sentence_labels"] == hand["labels"]


def test_batches_of_rows_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    (_, [whole]), _ = make_rows([50] * 20, 32), monkeypatch.setattr(rows_module, "SLOTS_PER_BATCH", 3 * 32)
    _, parts = make_rows([50] * 20, 32)
    assert len(parts) > 3
    assert [row for part in parts for row in part.to_pylist()] == whole.to_pylist()


@given(
    st.lists(st.integers(0, 90), min_size=1, max_size=12), st.sampled_from([16, 30]), st.booleans(), st.integers(0, 99)
)
def test_every_token_of_the_documents_is_in_the_rows_once_and_words_stay_whole(
    lengths: list[int], seq_len: int, nsp: bool, seed: int
) -> None:
    documents = random_documents(lengths, seed)
    documents.token_ids[:] = np.arange(len(documents.token_ids)) + 5  # so that a token says where it is from
    rng = np.random.default_rng(seed)
    sequences = make_sequences(documents, seq_len=seq_len, nsp=nsp, short_sequence_probability=0.3, rng=rng)
    rows, num_rows = pack(sequences.lengths, seq_len)
    batches = row_batches(
        documents, sequences, rows, num_rows, seq_len=seq_len, vocab_size=2000, special_token_ids=SPECIALS
    )
    seen = []
    for row in (row for batch in batches for row in batch.to_pylist()):
        starts = np.unpackbits(np.array(row["word_starts"], np.uint8), bitorder="little")
        for place, token in enumerate(row["input_ids"]):
            if token >= 5 and row["input_ids"][place - 1] >= 5:
                assert token == row["input_ids"][place - 1] + 1
                assert starts[place] == documents.word_starts[token - 5]
        seen += _own_tokens(row)
    assert sorted(seen) == documents.token_ids.tolist()


def _own_tokens(row: dict) -> list[int]:
    """Tokens of A and of true Bs."""
    tokens, start = [], 0
    columns = (row["sequence_lengths"], row["segment_a_lengths"], row["next_sentence_labels"])
    for length, a, label in zip(*columns, strict=True):
        tokens += row["input_ids"][start + 1 : start + (a if label == 1 else length) - 1]
        start += length
    return [token for token in tokens if token >= 5]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 99))
def test_good_rows_pass_the_check(lengths: list[int], seed: int) -> None:
    _, [batch] = make_rows(lengths, 24, seed)
    assert find_broken_row(batch, 99, SPECIALS) is None


def _changed(batch: pa.RecordBatch, name: str, row: int, slot: int, value: int) -> pa.RecordBatch:
    rows = batch.to_pylist()
    rows[row][name][slot] = value
    return pa.RecordBatch.from_pylist(rows, schema=batch.schema)


@pytest.mark.parametrize(
    ("name", "slot", "value", "promise"),
    [
        ("input_ids", 0, 7, "missing from its place"),
        ("input_ids", 23, 7, "missing from its place"),
        ("input_ids", 1, 4, "inside a text"),
        ("input_ids", 1, 99, "vocabulary"),
        ("sequence_lengths", 0, 25, "longer than the row"),
        ("sequence_lengths", 0, 2, "no token"),
        ("segment_a_lengths", 0, 2, "lacks A or B"),
        ("next_sentence_labels", 0, 2, "label"),
        ("word_starts", 0, 0, "does not start a word"),
        ("word_starts", 0, 0b11111101, "first token of a text"),
        ("word_starts", 2, 0xFF, "in the padding"),
    ],
)
def test_a_broken_row_is_named(name: str, slot: int, value: int, promise: str) -> None:
    _, [batch] = make_rows([9, 30, 25, 9, 40], 24)
    labels = batch.column("next_sentence_labels").to_pylist()
    row = next(
        i for i, found in enumerate(labels) if found[0] != -100 and batch.column("input_ids")[i][-1].as_py() == 0
    )
    broken = find_broken_row(_changed(batch, name, row, slot, value), 99, SPECIALS)
    assert broken is not None
    assert broken[0] == row
    assert promise in broken[1]
