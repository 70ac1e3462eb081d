"""One sample shard as arrays over the memory-mapped file, opened when first read."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.arrow_shards import read_shard
from kexue_train.foundation.errors import ArtifactError
from kexue_train.samples.ragged import ranges
from kexue_train.samples.schema import RAGGED_COLUMNS, column_values, sample_schema

_Rows = npt.NDArray[np.int64]


class Chunk:
    """One record batch as views into the mapped file."""

    def __init__(self, columns: dict[str, Any], seq_len: int) -> None:
        self.ids = column_values(columns["input_ids"])[0].reshape(-1, seq_len)
        self.packed_word_starts = column_values(columns["word_starts"])[0].reshape(len(self.ids), -1)
        self.ragged = {name: column_values(columns[name])[0] for name in RAGGED_COLUMNS}
        self.borders = column_values(columns[RAGGED_COLUMNS[0]])[1]


class ShardReader:
    """Finds the rows of one shard."""

    def __init__(self, path: Path, seq_len: int, vocab_size: int) -> None:
        self.path, self.seq_len, self.vocab_size = path, seq_len, vocab_size

    @cached_property
    def chunks(self) -> list[Chunk]:
        """Its record batches."""
        table = read_shard(self.path)
        schema = sample_schema(self.seq_len, self.vocab_size)
        if table.schema != schema:
            raise ArtifactError(f"{self.path}: has the columns {table.schema}, expected {schema}; run its stage again")
        return [
            Chunk(dict(zip(schema.names, batch.columns, strict=True)), self.seq_len) for batch in table.to_batches()
        ]

    @cached_property
    def first_rows(self) -> _Rows:
        """The shard's number of the first row of each chunk, and the number of all."""
        return np.cumsum([0, *(len(chunk.ids) for chunk in self.chunks)])

    def locate(self, rows: _Rows) -> list[tuple[_Rows, _Rows, Chunk]]:
        """(places in ``rows``, rows within the chunk, chunk) for every chunk that holds some of ``rows``."""
        chunk_of = np.searchsorted(self.first_rows, rows, side="right") - 1
        located = []
        for number in np.unique(chunk_of):
            places = np.flatnonzero(chunk_of == number)
            located.append((places, rows[places] - self.first_rows[number], self.chunks[number]))
        return located


def join_lists(found: list[tuple[_Rows, _Rows, Chunk]], counts: _Rows) -> dict[str, npt.NDArray[np.int64]]:
    """The list columns of the rows ``found`` as (B, K) arrays: ``counts`` (B,) values per row, then 0 or -100."""
    shape = (len(counts), int(counts.max(initial=0)))
    result = {name: np.full(shape, -100 if name == "next_sentence_labels" else 0, np.int64) for name in RAGGED_COLUMNS}
    for places, local, chunk in found:
        source = ranges(chunk.borders[local], counts[places])
        target = ranges(places * shape[1], counts[places])
        for name, array in result.items():
            array.ravel()[target] = chunk.ragged[name][source]
    return result
