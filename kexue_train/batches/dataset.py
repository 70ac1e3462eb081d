"""Sample shards as arrays: memory-mapped, opened when first read, any rows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.batches.mixture import quotas, split
from kexue_train.batches.order import rows_at, training_rows
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.artifacts import Manifest, check_files, digest_of, read_manifest
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.samples.schema import RAGGED_COLUMNS, SOURCE_COLUMNS, column_values, id_dtype, ranges, sample_schema

_Rows = npt.NDArray[np.int64]
_PIECES_PER_WORD = 4.0  # more than of English or Chinese; for samples whose manifest does not tell


class Chunk:
    """One record batch as views into the mapped file."""

    def __init__(self, columns: dict[str, Any], seq_len: int) -> None:
        self.ids = column_values(columns["input_ids"])[0].reshape(-1, seq_len)
        self.packed_word_starts = column_values(columns["word_starts"])[0].reshape(len(self.ids), -1)
        self.ragged = {
            name: column_values(columns[name])[0] for name in (*RAGGED_COLUMNS, *SOURCE_COLUMNS) if name in columns
        }
        self.borders = column_values(columns[RAGGED_COLUMNS[0]])[1]


class ShardReader:
    """Finds the rows of one shard."""

    def __init__(self, path: Path, seq_len: int, vocab_size: int, *, has_sources: bool = False) -> None:
        self.path, self.seq_len, self.vocab_size, self.has_sources = path, seq_len, vocab_size, has_sources

    @cached_property
    def chunks(self) -> list[Chunk]:
        """Its record batches."""
        table = read_shard(self.path)
        schema = sample_schema(self.seq_len, self.vocab_size, has_sources=self.has_sources)
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
        """(indices in ``rows``, rows within the chunk, chunk) for every chunk that holds some of ``rows``."""
        chunk_of = np.searchsorted(self.first_rows, rows, side="right") - 1
        located = []
        for number in np.unique(chunk_of):
            indices = np.flatnonzero(chunk_of == number)
            located.append((indices, rows[indices] - self.first_rows[number], self.chunks[number]))
        return located


def join_lists(
    found: list[tuple[_Rows, _Rows, Chunk]], counts: _Rows, names: Sequence[str] = RAGGED_COLUMNS
) -> dict[str, npt.NDArray[np.int64]]:
    """Return the list columns of the rows ``found`` as (B, K) arrays: ``counts`` (B,) values a row, then 0 or -100."""
    shape = (len(counts), int(counts.max(initial=0)))
    # Row i of the (B, K) array begins at element i · K of the flat one: with K = 3 and counts (2, 3), the values of the
    # two rows go to elements 0, 1 and 3, 4, 5, and element 2 keeps the fill value.
    result = {name: np.full(shape, -100 if name == "next_sentence_labels" else 0, np.int64) for name in names}
    for indices, local, chunk in found:
        source = ranges(chunk.borders[local], counts[indices])
        target = ranges(indices * shape[1], counts[indices])
        for name, array in result.items():
            array.ravel()[target] = chunk.ragged[name][source]
    return result


class SampleDataset:
    """Random access to the rows of one folder of sample shards, or of several: their rows are counted through.

    Args:
        folders: The folder; or folders with their weights, the shares of the rows that a training reads from each.

    Attributes:
        weights: The folders with their weights.
        folders: All of them.
        manifests: Theirs.
        seq_len: Slots of a row.
        vocab_size: Pieces of the vocabulary.
        special_token_ids: Name (pad, unk, cls, sep, mask) -> id.
        sources: The sources of a mixture, by their numbers in the rows; none unless all folders are made from the same.

    Raises:
        ArtifactError: If a folder holds no sample shards, a file is missing or of another size, or the folders differ
            in sequence length, vocabulary or tokenizer.
        ConfigError: If a weight is not positive or too small.
    """

    def __init__(self, folders: Path | Mapping[Path, float]) -> None:
        self.weights = weights = dict(folders) if isinstance(folders, Mapping) else {folders: 1.0}
        self.folders = tuple(weights)
        self.manifests = tuple(_read(folder) for folder in self.folders)
        require_agreement(self.folders, self.manifests, same_length=True)
        try:
            self.shares = quotas(tuple(weights.values()))
        except ValueError as error:
            raise ConfigError(
                f"{', '.join(map(str, self.folders))}: {error}; raise it, or leave the folder out"
            ) from error
        statistics = self.manifests[0].statistics
        self.seq_len, self.vocab_size = int(statistics["seq_len"]), int(statistics["vocab_size"])
        self.special_token_ids: dict[str, int] = statistics["special_token_ids"]
        names = {tuple(manifest.statistics.get("sources", ())) for manifest in self.manifests}
        self.sources: tuple[str, ...] = names.pop() if len(names) == 1 else ()
        self._first_rows_of_folders = np.cumsum([0, *(manifest.rows for manifest in self.manifests)])
        shards = [
            (path, manifest.files[path.name].rows or 0, "sources" in manifest.statistics)
            for folder, manifest in zip(self.folders, self.manifests, strict=True)
            for path in shard_paths(folder)
        ]
        self._first_rows = np.cumsum([0, *(rows for _, rows, _ in shards)])
        self._shards = [
            ShardReader(path, self.seq_len, self.vocab_size, has_sources=has_sources) for path, _, has_sources in shards
        ]

    def __len__(self) -> int:
        """Return the number of rows, held-out ones included."""
        return int(self._first_rows[-1])

    @property
    def content_digest(self) -> str:
        """Changes with what a training reads: the contents of the folders and their shares."""
        digests = [manifest.content_digest for manifest in self.manifests]
        return digests[0] if len(digests) == 1 else digest_of(list(zip(digests, self.shares, strict=True)))

    @property
    def heldout_rows(self) -> _Rows:
        """The rows that no training step reads."""
        firsts = zip(self._first_rows_of_folders, self.manifests, strict=False)
        return np.concatenate([first + np.arange(training_rows(manifest)[0]) for first, manifest in firsts])

    @property
    def num_training_rows(self) -> int:
        """All other rows."""
        return sum(training_rows(manifest)[1] for manifest in self.manifests)

    @property
    def pieces_per_word(self) -> float:
        """Mean length of the word of a random piece, in pieces."""
        return max(_pieces_per_word(manifest) for manifest in self.manifests)

    def mean_per_row(self, statistic: str) -> float:
        """Return a statistic of the manifest per row, in the mean over the rows that a training reads."""
        means = [manifest.statistics[statistic] / manifest.rows for manifest in self.manifests]
        return float(np.average(means, weights=self.shares))

    def rows_at(self, positions: _Rows, seed: int) -> tuple[_Rows, _Rows]:
        """Return the rows that ``positions`` (n,) of the training's stream read, and their epochs: both (n,) int64."""
        folders, own = split(positions, self.shares, seed) if len(self.folders) > 1 else (positions * 0, positions)
        rows, epochs = np.empty_like(positions), np.empty_like(positions)
        for folder in np.unique(folders).tolist():
            here = folders == folder
            first, num_rows = training_rows(self.manifests[folder])
            rows[here], epochs[here] = rows_at(own[here], num_rows, seed, folder)
            rows[here] += first + self._first_rows_of_folders[folder]
        return rows, epochs

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the columns of ``rows`` (B,), in that order, as arrays of their own.

        Returns:
            input_ids (B, seq_len) uint16 or uint32; word_starts (B, seq_len) bool; sequence_lengths and
            segment_a_lengths (B, K) int64, 0 where a row has fewer than K sequences; next_sentence_labels (B, K) int64,
            -100 there. K is the largest number of sequences in one of the rows. With ``sources`` also segment_a_sources
            and segment_b_sources (B, K) int64.

        Raises:
            IndexError: If a row is not in ``range(len(self))``.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} are not all in range({len(self)})")
        ids = np.empty((len(rows), self.seq_len), id_dtype(self.vocab_size))
        packed = np.empty((len(rows), (self.seq_len + 7) // 8), np.uint8)
        counts = np.zeros(len(rows), np.int64)
        found: list[tuple[_Rows, _Rows, Chunk]] = []
        shard_of = np.searchsorted(self._first_rows, rows, side="right") - 1
        for number in np.unique(shard_of):
            in_shard = np.flatnonzero(shard_of == number)
            for indices, local, chunk in self._shards[number].locate(rows[in_shard] - self._first_rows[number]):
                here = in_shard[indices]
                ids[here] = chunk.ids[local]
                packed[here] = chunk.packed_word_starts[local]
                counts[here] = chunk.borders[local + 1] - chunk.borders[local]
                found.append((here, local, chunk))
        word_starts = np.unpackbits(packed, axis=1, count=self.seq_len, bitorder="little").view(np.bool_)
        names = (*RAGGED_COLUMNS, *SOURCE_COLUMNS) if self.sources else RAGGED_COLUMNS
        return {"input_ids": ids, "word_starts": word_starts, **join_lists(found, counts, names)}


def _read(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.kind != "sample_shards":
        raise ArtifactError(
            f"{folder}: holds {manifest.kind}, not sample_shards; give a folder made by 'kexue samples'"
        )
    check_files(folder, manifest)
    return manifest


def require_agreement(folders: Sequence[Path], manifests: Sequence[Manifest], *, same_length: bool) -> None:
    """Check that samples have one tokenizer, and with ``same_length`` rows of one length.

    Raises:
        ArtifactError: Names two folders that differ, and in what.
    """

    def facts(manifest: Manifest) -> dict[str, Any]:
        known = {name: manifest.statistics[name] for name in ("seq_len", "vocab_size", "special_token_ids")}
        if not same_length:
            del known["seq_len"]
        return known | {"tokenizer": manifest.parents.get("tokenizer")}

    first = facts(manifests[0])
    for folder, manifest in zip(folders, manifests, strict=True):
        for name, value in facts(manifest).items():
            if value != first[name]:
                raise ArtifactError(
                    f"{folders[0]} and {folder} cannot be {'mixed' if same_length else 'trained on together'}: {name} "
                    f"is {first[name]} in the one and {value} in the other; make both with the same tokenizer"
                    f"{' and samples.seq_len' if same_length else ''}"
                )


def _pieces_per_word(manifest: Manifest) -> float:
    """E[length²] / E[length] of the words: in the mean over pieces, how long the word of a piece is."""
    statistics = manifest.statistics
    pieces = statistics.get("words", 0) * statistics.get("tokens_per_word", 0)
    return float(statistics["word_tokens_squared"] / pieces) if pieces else _PIECES_PER_WORD
