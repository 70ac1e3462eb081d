"""What is counted over sample rows; the sample stage and ``kexue verify`` count with the same code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.samples.nsp import IS_NEXT, IS_RANDOM, NO_PAIR
from kexue_train.samples.schema import RAGGED_COLUMNS, column_values, rows_to_bytes
from kexue_train.samples.source_tokens import SourceTokens
from kexue_train.shuffle.keys import hash_rows, sum_words

_LONG_WORD = 8  # words of so many pieces and more are counted together in the histogram
_SPECIALS = ("pad", "cls", "sep")


class RowCounts:
    """Sums over rows.

    Attributes:
        numbers: rows, heldout_rows, sequences, pairs, negative_pairs, real_tokens (all but [PAD]), and of the tokens
            of A and true Bs, which are the documents': document_tokens and unknown_tokens.
        token_counts: (vocab_size,) int64, occurrences of each id in the training rows.
        word_lengths: (seq_len + 1,) int64, words of each number of tokens in the training rows.
        by_source: Tokens by source; of a mixture, whose ``sources`` are named.
        checksum: Sum of the hashes of the rows' bytes modulo 2¹²⁸.
    """

    def __init__(
        self, seq_len: int, vocab_size: int, special_token_ids: Mapping[str, int], sources: Sequence[str] = ()
    ) -> None:
        self.by_source = SourceTokens(sources)
        self.seq_len, self.vocab_size, self.special_token_ids = seq_len, vocab_size, special_token_ids
        self.numbers: Counter[str] = Counter(rows=0, heldout_rows=0, sequences=0, pairs=0, negative_pairs=0)
        self.numbers.update(real_tokens=0, document_tokens=0, unknown_tokens=0)
        self.token_counts = np.zeros(vocab_size, np.int64)
        self.word_lengths = np.zeros(seq_len + 1, np.int64)
        self.checksum = 0

    def add(self, batch: pa.RecordBatch, *, is_heldout: bool) -> None:
        """Count the rows of ``batch``."""
        if not batch.num_rows:
            return
        ids, _ = column_values(batch.column("input_ids"))
        lengths, segment_a, labels = (column_values(batch.column(name))[0].astype(np.int64) for name in RAGGED_COLUMNS)
        _, borders = column_values(batch.column("sequence_lengths"))
        self.numbers.update(
            rows=batch.num_rows,
            heldout_rows=batch.num_rows if is_heldout else 0,
            sequences=len(labels),
            pairs=int(np.count_nonzero(labels != NO_PAIR)),
            negative_pairs=int(np.count_nonzero(labels == IS_RANDOM)),
            real_tokens=int(lengths.sum()),
            document_tokens=int((segment_a - 2).sum() + (lengths - segment_a - 1)[labels == IS_NEXT].sum()),
            unknown_tokens=self._unknown(ids, lengths, segment_a, labels, np.diff(borders)),
        )
        self.by_source.add(batch, is_heldout=is_heldout)
        if not is_heldout:
            self.token_counts += np.bincount(ids, minlength=self.vocab_size)
            self.word_lengths += self._words(ids, batch)
        self.checksum = (self.checksum + sum_words(hash_rows(rows_to_bytes(batch)))) % (1 << 128)

    def describe(self, documents: Mapping[str, Any]) -> dict[str, Any]:
        """Return the statistics of the manifest, beside ``documents`` (numbers by name); there is at least one row."""
        found, tokens = self.numbers, np.arange(len(self.word_lengths))
        words = int(self.word_lengths.sum())
        return {
            "seq_len": self.seq_len,
            "vocab_size": self.vocab_size,
            **documents,
            **{name: number for name, number in found.items() if name != "rows"},
            "single_sequences": found["sequences"] - found["pairs"],
            "words": words,
            "word_tokens_squared": int((self.word_lengths * tokens**2).sum()),
            "word_lengths": self._histogram(),
            "fill": round(found["real_tokens"] / (found["rows"] * self.seq_len), 6),
            "negative_share": round(found["negative_pairs"] / max(1, found["pairs"]), 6),
            "unknown_rate": round(found["unknown_tokens"] / max(1, found["document_tokens"]), 6),
            "tokens_per_document": round(found["document_tokens"] / documents["documents"], 3),
            "tokens_per_word": round(int((self.word_lengths * tokens).sum()) / max(1, words), 4),
            "mean_pairs_per_row": round(found["pairs"] / found["rows"], 4),
            "mean_sequences_per_row": round(found["sequences"] / found["rows"], 4),
            "special_token_ids": dict(self.special_token_ids),
            **({"sources": self.by_source.describe()} if self.by_source.names else {}),
        }

    def _histogram(self) -> dict[str, int]:
        counts = self.word_lengths
        short = {str(length): int(counts[length]) for length in range(1, _LONG_WORD)}
        return short | {f"{_LONG_WORD} or more": int(counts[_LONG_WORD:].sum())}

    def _unknown(
        self,
        ids: npt.NDArray[Any],
        lengths: npt.NDArray[np.int64],
        segment_a: npt.NDArray[np.int64],
        labels: npt.NDArray[np.int64],
        sequences_per_row: npt.NDArray[np.int64],
    ) -> int:
        """Count the unknown tokens outside copied Bs, which are counted where they come from."""
        slots = np.flatnonzero(ids == self.special_token_ids["unk"])
        rows = np.repeat(np.arange(len(sequences_per_row)), sequences_per_row)
        padding = self.seq_len - np.bincount(rows, lengths).astype(np.int64)
        # As in ``rows._lay_out``: a sequence begins behind all before it and the padding of all rows before its own.
        first_slots = np.cumsum(lengths) - lengths + (np.cumsum(padding) - padding)[rows]
        sequence = np.searchsorted(first_slots, slots, side="right") - 1
        is_copied = (labels[sequence] == IS_RANDOM) & (slots - first_slots[sequence] >= segment_a[sequence])
        return int(np.count_nonzero(~is_copied))

    def _words(self, ids: npt.NDArray[Any], batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        packed, _ = column_values(batch.column("word_starts"))
        starts = np.unpackbits(
            packed.reshape(batch.num_rows, -1), axis=1, count=self.seq_len, bitorder="little"
        ).ravel()
        slots = np.flatnonzero(starts)
        is_special = np.zeros(self.vocab_size, np.bool_)
        is_special[[self.special_token_ids[name] for name in _SPECIALS]] = True
        # Every row begins with a special token, so no word reaches into the next row.
        lengths = np.diff(slots, append=len(ids))[~is_special[ids[slots]]]
        return np.bincount(lengths, minlength=self.seq_len + 1)
