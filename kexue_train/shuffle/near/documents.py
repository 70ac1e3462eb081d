"""What the first pass keeps of each document for the comparison: who it is, where its record lies, its sample.

Two files per scatter task: a table with an entry for each document, and the samples, one after the other. A document's
number is (task, place in the task): it grows with the place in the corpus, and depends on the inputs alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.write_behind import WriteBehindFile
from kexue_train.shuffle.keys import Words
from kexue_train.shuffle.near.minhash import Samples

Numbers = npt.NDArray[np.uint64]

TASK_SHIFT = np.uint64(40)
ENTRY = np.dtype(
    [
        ("high", "<u8"),
        ("low", "<u8"),
        ("file", "<u4"),
        ("size", "<u4"),
        ("position", "<u8"),
        ("start", "<u8"),
    ]
)
"""Of a document: its text's hash in two halves, input file, length of the sample, position, and start of the sample."""
_BATCH = 2048
"""Entries read at a time: each may touch a page of the table."""


def number_documents(task: int, first: int, count: int) -> Numbers:
    """Return the numbers of documents ``first``, ``first + 1``... of a scatter task."""
    return (np.uint64(task) << TASK_SHIFT) | np.arange(first, first + count, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class DocumentFiles:
    """The two files of a scatter task as they should be."""

    table_bytes: int
    table_checksum: str
    samples_bytes: int
    samples_checksum: str


class DocumentWriter:
    """Writes the files of one scatter task."""

    def __init__(self, table: Path, samples: Path, *, fits_memory: bool) -> None:
        self._table = WriteBehindFile(table, is_written_behind=not fits_memory)
        self._samples = WriteBehindFile(samples, is_written_behind=not fits_memory)
        self.count = 0

    def add(
        self,
        file_index: int,
        positions: npt.NDArray[np.uint64],
        contents: Words,
        samples: Samples,
        sample_of: npt.NDArray[np.int64],
    ) -> None:
        """Add n documents; document i has the sample ``sample_of[i]``, of which equal texts may share one."""
        entries = np.zeros(len(positions), ENTRY)
        entries["high"], entries["low"] = contents
        entries["file"], entries["position"] = file_index, positions
        entries["size"] = np.diff(samples.bounds)[sample_of]
        entries["start"] = self._samples.bytes // 4 + samples.bounds[:-1][sample_of]
        self._table.write(entries.tobytes())
        self._samples.write(samples.hashes.astype("<u4").tobytes())
        self.count += len(positions)

    def finish(self) -> DocumentFiles:
        """Close the files and describe them."""
        self.close()
        table, samples = self._table, self._samples
        return DocumentFiles(table.bytes, table.checksum, samples.bytes, samples.checksum)

    def close(self) -> None:
        """Close the files as they are."""
        self._table.close()
        self._samples.close()


@dataclass(frozen=True, slots=True)
class DocumentReader:
    """Reads what the scatter tasks wrote, given (table, samples) for each of them."""

    paths: Sequence[tuple[Path, Path]]

    def entries(self, numbers: Numbers) -> npt.NDArray[np.void]:
        """Return the entries of ascending numbers, shape (n,)."""
        found = np.zeros(len(numbers), ENTRY)
        for task, low, high in _by_task(numbers):
            places = (numbers[low:high] & ((np.uint64(1) << TASK_SHIFT) - np.uint64(1))).astype(np.int64)
            for start in range(0, high - low, _BATCH):
                batch = places[start : start + _BATCH]
                try:
                    table = np.memmap(self.paths[task][0], ENTRY, "r")  # mapped anew, so that the pages go at once
                    found[low + start : low + start + len(batch)] = table[batch]
                except (IndexError, ValueError):
                    raise _damaged(self.paths[task][0]) from None
        return found

    def samples(self, numbers: Numbers, entries: npt.NDArray[np.void]) -> Samples:
        """Return the samples of ascending numbers, whose entries are given."""
        sizes = entries["size"].astype(np.int64)
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        hashes = np.zeros(bounds[-1], np.uint32)
        for task, low, high in _by_task(numbers):
            path = self.paths[task][1]
            with path.open("rb", buffering=0) as file:
                for i in range(low, high):
                    part = hashes[bounds[i] : bounds[i + 1]]
                    file.seek(4 * int(entries["start"][i]))
                    if len(part) and file.readinto(part.data.cast("B")) != part.nbytes:
                        raise _damaged(path)
        return Samples(hashes, bounds)


def _by_task(numbers: Numbers) -> list[tuple[int, int, int]]:
    """Return (task, low, high): the numbers of a task are ``numbers[low:high]``."""
    tasks = (numbers >> TASK_SHIFT).astype(np.int64)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(tasks)) + 1, [len(tasks)]]).tolist()
    return [(int(tasks[low]), low, high) for low, high in itertools.pairwise(edges) if low < high]


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path}: an intermediate file of the shuffle is damaged or cut off; check that disk, delete the file, then "
        "run the same command again: only what the file held is read again"
    )
