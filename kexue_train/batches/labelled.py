"""Labelled rows of one task -> micro-batches: sequences laid side by side into rows, and what the task's head predicts.

The arrays have the keys of ``collate.Batch``, with the slots and labels of the task in place of those of pretraining.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from kexue_train.batches.collate import Target
from kexue_train.batches.order import rows_at, training_rows
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.artifacts import Manifest, check_files, read_manifest
from kexue_train.foundation.errors import ArtifactError
from kexue_train.samples.labelled_rows import KIND, LIST_COLUMNS, labelled_schema
from kexue_train.samples.mlm import IGNORE_INDEX
from kexue_train.samples.schema import column_values, ranges
from kexue_train.samples.task_kinds import TaskKind

Arrays = dict[str, npt.NDArray[Any]]
_Rows = npt.NDArray[np.int64]


def target_of(task: str) -> Target:
    """Return the keys of what the head of ``task`` predicts, in a batch."""
    return Target(f"{task}_slots", f"{task}_labels")


class _Column(NamedTuple):
    """A list column: its values and where those of each row begin."""

    values: npt.NDArray[Any]
    borders: _Rows

    def take(self, rows: _Rows) -> tuple[_Rows, _Rows]:
        """Return the values of ``rows`` one after the other, and how many each row has."""
        counts = self.borders[rows + 1] - self.borders[rows]
        return self.values[ranges(self.borders[rows], counts)].astype(np.int64), counts


class LabelledDataset:
    """Random access to the rows of one task.

    Args:
        folder: Made by ``samples.labelled_rows.write_labelled_rows``.

    Attributes:
        manifest: Its manifest.
        name: Name of the task.
        kind: What its labels mean.
        num_outputs: Width of its head.
        width: Slots of the rows that its sequences are laid into; the longest fits.

    Raises:
        ArtifactError: If the folder holds no labelled rows, or a file is missing or of another size.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, _read(folder)
        facts = self.manifest.statistics
        self.name, self.num_outputs = str(facts["task"]), int(facts["num_outputs"])
        self.kind: TaskKind = facts["task_kind"]
        self.width = int(facts["longest"])
        self._stream = xxhash.xxh32_intdigest(self.name.encode())  # the same whatever else is in the mix

    @property
    def heldout_rows(self) -> _Rows:
        """The rows of the development set."""
        return np.arange(training_rows(self.manifest)[0])

    @property
    def num_training_rows(self) -> int:
        """All other rows."""
        return training_rows(self.manifest)[1]

    def mean_per_row(self, statistic: str) -> float:
        """Return a statistic of the manifest per row, in the mean."""
        return float(self.manifest.statistics[statistic] / self.manifest.rows)

    def rows_at(self, positions: _Rows, seed: int) -> _Rows:
        """Return the rows that ``positions`` (n,) of the task's endless stream read: (n,) int64."""
        first, number = training_rows(self.manifest)
        return rows_at(positions, number, seed, self._stream)[0] + first

    def make_batch(self, rows: _Rows) -> Arrays:
        """Return the micro-batch of ``rows`` (n,), n > 0; a pure function of the rows."""
        ids, _ = self._columns["input_ids"].take(rows)
        lengths, per_row = self._columns["sequence_lengths"].take(rows)
        segment_a, _ = self._columns["segment_a_lengths"].take(rows)
        labels, label_counts = self._columns["labels"].take(rows)
        firsts, num_rows = lay_out(lengths, self.width)
        slots = ranges(firsts, lengths)  # of each token
        in_sequence = ranges(np.zeros_like(lengths), lengths)
        batch = {name: np.zeros(num_rows * self.width, np.int64) for name in _PER_SLOT}
        batch["input_ids"][slots] = ids
        batch["sequence_ids"][slots] = np.repeat(_numbers_in_row(firsts // self.width), lengths)
        batch["position_ids"][slots] = in_sequence
        batch["token_type_ids"][slots] = in_sequence >= np.repeat(segment_a, lengths)
        arrays: Arrays = {name: values.reshape(num_rows, self.width) for name, values in batch.items()}
        arrays["sequence_starts"] = _starts(arrays["sequence_ids"])
        target = target_of(self.name)
        found = self._targets(firsts, lengths, per_row, labels, label_counts)
        arrays[target.slots], arrays[target.labels] = found
        return arrays

    def _targets(
        self, firsts: _Rows, lengths: _Rows, per_row: _Rows, labels: _Rows, label_counts: _Rows
    ) -> tuple[_Rows, _Rows]:
        """Return slots (k,) and labels (k,) or (k, 2 or 3), as the head of the kind reads them."""
        if self.kind == "classification":
            return firsts, labels
        if self.kind == "choice":  # [CLS] of every option: which record, and whether it is the right one
            records = np.repeat(np.arange(len(per_row)), per_row)
            is_right = ranges(np.zeros_like(per_row), per_row) == labels[records]
            return firsts, np.stack([records, is_right], axis=1)
        slots = ranges(firsts, lengths)
        if self.kind == "reading":  # every token: which example, and whether the answer starts and ends there
            examples = np.repeat(np.arange(len(lengths)), lengths)
            place = ranges(np.zeros_like(lengths), lengths)
            starts, ends = labels.reshape(-1, 2).T
            return slots, np.stack([examples, place == starts[examples], place == ends[examples]], axis=1)
        assert (label_counts == lengths).all(), "a tag per token"
        tagged = labels != IGNORE_INDEX
        return slots[tagged], labels[tagged]

    @cached_property
    def _columns(self) -> dict[str, _Column]:
        (path,) = shard_paths(self.folder)
        table, schema = read_shard(path), labelled_schema(int(self.manifest.statistics["vocab_size"]))
        if table.schema != schema:
            raise ArtifactError(f"{path}: has the columns {table.schema}, expected {schema}; run its stage again")
        (batch,) = table.to_batches()
        return {name: _Column(*column_values(batch.column(name))) for name in LIST_COLUMNS}


_PER_SLOT = ("input_ids", "sequence_ids", "position_ids", "token_type_ids")


def lay_out(lengths: _Rows, width: int) -> tuple[_Rows, int]:
    """Lay sequences side by side, in order, into rows of ``width``; return their first slots and the number of rows."""
    firsts, row, filled = np.empty_like(lengths), 0, 0
    for number, length in enumerate(lengths.tolist()):
        if filled + length > width:
            row, filled = row + 1, 0
        firsts[number] = row * width + filled
        filled += length
    return firsts, row + 1


def _numbers_in_row(row_of: _Rows) -> _Rows:
    """Return 1, 2, ... for the sequences of each row; ``row_of`` (n,) rises."""
    begins = np.flatnonzero(np.diff(row_of, prepend=-1))
    counts = np.diff(begins, append=len(row_of))
    return ranges(np.ones_like(counts), counts)


def _starts(sequence_ids: _Rows) -> npt.NDArray[np.int32]:
    """Return the first slots of the runs of equal numbers in (B, S), then B · S."""
    begins = np.ones(sequence_ids.shape, np.bool_)
    begins[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return np.append(np.flatnonzero(begins), sequence_ids.size).astype(np.int32)


def _read(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    if manifest.kind != KIND:
        raise ArtifactError(f"{folder}: holds {manifest.kind}, not {KIND}; give a folder made by 'kexue supervise'")
    check_files(folder, manifest)
    return manifest
