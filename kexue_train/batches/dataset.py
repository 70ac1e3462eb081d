"""Sample shards as arrays: memory-mapped, opened when first read, any rows at once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.arrow_shards import read_shard, shard_paths
from kexue_train.artifacts import Manifest, check_files, read_manifest
from kexue_train.errors import ArtifactError
from kexue_train.samples.encode import id_dtype, ranges
from kexue_train.samples.schema import RAGGED_COLUMNS, column_values, sample_schema

_Rows = npt.NDArray[np.int64]


class SampleDataset:
    """Random access to the rows of a folder of sample shards.

    Attributes:
        manifest: Of the folder.
        seq_len: Slots of a row.
        vocab_size: Pieces of the vocabulary.
        special_token_ids: Name (pad, unk, cls, sep, mask) -> id.

    Raises:
        ArtifactError: If the folder holds no sample shards, or a file is missing or of another size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        if self.manifest.kind != "sample_shards":
            raise ArtifactError(
                f"{folder}: holds {self.manifest.kind}, not sample_shards; give a folder made by 'kexue samples'"
            )
        check_files(folder, self.manifest)
        self.seq_len = int(self.manifest.statistics["seq_len"])
        self.vocab_size = int(self.manifest.statistics["vocab_size"])
        self.special_token_ids: dict[str, int] = self.manifest.statistics["special_token_ids"]
        paths = shard_paths(folder)
        self._first_rows = np.cumsum([0, *(self.manifest.files[path.name].rows or 0 for path in paths)])
        self._shards = [_Shard(path, self.seq_len, self.vocab_size) for path in paths]

    def __len__(self) -> int:
        """Rows, held-out ones included."""
        return self.manifest.rows

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> dict[str, npt.NDArray[Any]]:
        """The columns of ``rows`` (B,), in that order, as arrays of their own.

        Returns:
            input_ids (B, seq_len) uint16 or uint32; word_starts (B, seq_len) bool; sequence_lengths and
            segment_a_lengths (B, K) int64, 0 where a row has fewer than K sequences; next_sentence_labels (B, K) int64,
            -100 there. K is the largest number of sequences in one of the rows.

        Raises:
            IndexError: If a row is not in ``range(len(self))``.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} are not all in range({len(self)})")
        ids = np.empty((len(rows), self.seq_len), id_dtype(self.vocab_size))
        packed = np.empty((len(rows), (self.seq_len + 7) // 8), np.uint8)
        counts = np.zeros(len(rows), np.int64)
        found: list[tuple[_Rows, _Rows, _Chunk]] = []
        shard_of = np.searchsorted(self._first_rows, rows, side="right") - 1
        for number in np.unique(shard_of):
            in_shard = np.flatnonzero(shard_of == number)
            for places, local, chunk in self._shards[number].locate(rows[in_shard] - self._first_rows[number]):
                here = in_shard[places]
                ids[here] = chunk.ids[local]
                packed[here] = chunk.packed_word_starts[local]
                counts[here] = chunk.borders[local + 1] - chunk.borders[local]
                found.append((here, local, chunk))
        word_starts = np.unpackbits(packed, axis=1, count=self.seq_len, bitorder="little").view(np.bool_)
        return {"input_ids": ids, "word_starts": word_starts, **_ragged(found, counts)}


class _Chunk:
    """One record batch as views into the mapped file."""

    def __init__(self, columns: dict[str, Any], seq_len: int) -> None:
        self.ids = column_values(columns["input_ids"])[0].reshape(-1, seq_len)
        self.packed_word_starts = column_values(columns["word_starts"])[0].reshape(len(self.ids), -1)
        self.ragged = {name: column_values(columns[name])[0] for name in RAGGED_COLUMNS}
        self.borders = column_values(columns[RAGGED_COLUMNS[0]])[1]


class _Shard:
    def __init__(self, path: Path, seq_len: int, vocab_size: int) -> None:
        self.path, self.seq_len, self.vocab_size = path, seq_len, vocab_size

    @cached_property
    def chunks(self) -> list[_Chunk]:
        table = read_shard(self.path)
        schema = sample_schema(self.seq_len, self.vocab_size)
        if table.schema != schema:
            raise ArtifactError(f"{self.path}: has the columns {table.schema}, expected {schema}; run its stage again")
        return [
            _Chunk(dict(zip(schema.names, batch.columns, strict=True)), self.seq_len) for batch in table.to_batches()
        ]

    @cached_property
    def first_rows(self) -> _Rows:
        return np.cumsum([0, *(len(chunk.ids) for chunk in self.chunks)])

    def locate(self, rows: _Rows) -> list[tuple[_Rows, _Rows, _Chunk]]:
        """(places in ``rows``, rows within the chunk, chunk) for every chunk that holds some of ``rows``."""
        chunk_of = np.searchsorted(self.first_rows, rows, side="right") - 1
        located = []
        for number in np.unique(chunk_of):
            places = np.flatnonzero(chunk_of == number)
            located.append((places, rows[places] - self.first_rows[number], self.chunks[number]))
        return located


def _ragged(found: list[tuple[_Rows, _Rows, _Chunk]], counts: _Rows) -> dict[str, npt.NDArray[np.int64]]:
    shape = (len(counts), int(counts.max(initial=0)))
    result = {name: np.full(shape, -100 if name == "next_sentence_labels" else 0, np.int64) for name in RAGGED_COLUMNS}
    for places, local, chunk in found:
        source = ranges(chunk.borders[local], counts[places])
        target = ranges(places * shape[1], counts[places])
        for name, array in result.items():
            array.ravel()[target] = chunk.ragged[name][source]
    return result
