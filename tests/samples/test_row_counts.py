from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.samples.nsp import make_sequences
from kexue_train.samples.row_counts import RowCounts
from kexue_train.samples.rows import pack, row_batches
from kexue_train.samples.schema import rows_to_bytes
from tests.samples.random_documents import random_documents

SPECIALS = {"pad": 0, "unk": 7, "cls": 2, "sep": 3, "mask": 4}
SEQ_LEN = 30


def make_batch(lengths: list[int], seed: int) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    documents = random_documents(lengths, seed)
    documents.token_ids[documents.token_ids < 15] = 7
    sequences = make_sequences(documents, seq_len=SEQ_LEN, nsp=True, short_sequence_probability=0.3, rng=rng)
    rows, num_rows = pack(sequences.lengths, SEQ_LEN)
    [batch] = row_batches(
        documents, sequences, rows, num_rows, seq_len=SEQ_LEN, vocab_size=99, special_token_ids=SPECIALS
    )
    return batch


def words_of(row: dict) -> list[list[int]]:
    """The words of a row, special tokens and padding included."""
    bits = [row["word_starts"][slot // 8] >> slot % 8 & 1 for slot in range(SEQ_LEN)]
    words: list[list[int]] = []
    for token, starts in zip(row["input_ids"], bits, strict=True):
        words = [*words, [token]] if starts else [*words[:-1], [*words[-1], token]]
    return words


def count_by_hand(rows: list[dict], num_heldout: int) -> tuple[Counter[str], Counter[int], Counter[int]]:
    numbers: Counter[str] = Counter(rows=len(rows), heldout_rows=num_heldout)
    tokens: Counter[int] = Counter()
    words: Counter[int] = Counter()
    for i, row in enumerate(rows):
        start = 0
        columns = (row["sequence_lengths"], row["segment_a_lengths"], row["next_sentence_labels"])
        for length, a, label in zip(*columns, strict=True):
            own = row["input_ids"][start + 1 : start + a - 1]
            own += row["input_ids"][start + a : start + length - 1] if label == 0 else []
            numbers.update(sequences=1, pairs=label != -100, negative_pairs=label == 1, real_tokens=length)
            numbers.update(document_tokens=len(own), unknown_tokens=own.count(7))
            start += length
        if i >= num_heldout:
            tokens.update(row["input_ids"])
            words.update(len(word) for word in words_of(row) if word[0] not in (0, 2, 3))
    return numbers, tokens, words


DOCUMENTS = st.lists(st.integers(1, 90), min_size=3, max_size=12)


@given(DOCUMENTS, st.integers(0, 99), st.integers(0, 3))
def test_counts_are_those_made_row_by_row(lengths: list[int], seed: int, heldout: int) -> None:
    batch = make_batch(lengths, seed)
    heldout = min(heldout, batch.num_rows)
    counts = RowCounts(SEQ_LEN, 99, SPECIALS)
    counts.add(batch.slice(0, heldout), is_heldout=True)
    counts.add(batch.slice(heldout), is_heldout=False)
    numbers, tokens, words = count_by_hand(batch.to_pylist(), heldout)
    assert +counts.numbers == +numbers
    assert {i: n for i, n in enumerate(counts.token_counts.tolist()) if n} == tokens
    assert {i: n for i, n in enumerate(counts.word_lengths.tolist()) if n} == words
    hashes = [xxhash.xxh3_128_intdigest(row) for row in rows_to_bytes(batch).to_pylist()]
    assert counts.checksum == sum(hashes) % 2**128


@given(DOCUMENTS, st.integers(0, 99))
def test_words_are_described_by_number_square_and_histogram(lengths: list[int], seed: int) -> None:
    batch = make_batch(lengths, seed)
    counts = RowCounts(SEQ_LEN, 99, SPECIALS)
    counts.add(batch, is_heldout=False)
    words = [len(word) for row in batch.to_pylist() for word in words_of(row) if word[0] not in (0, 2, 3)]
    facts = counts.describe({"documents": len(lengths)})
    assert facts["words"] == len(words)
    assert facts["word_tokens_squared"] == sum(length**2 for length in words)
    histogram = Counter(str(length) if length < 8 else "8 or more" for length in words)
    assert {name: number for name, number in facts["word_lengths"].items() if number} == histogram
    assert facts["single_sequences"] == facts["sequences"] - facts["pairs"]
