"""A bucket as it lies in the spill files of all scatter tasks, on this machine or fetched from the others."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from kexue_train.executor.interface import machine_lost
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.operating_system import boot_id
from kexue_train.shuffle.rows import RowBuffer, Rows
from kexue_train.shuffle.spill import SpillIndex, SpillReader, SpillTable, iter_raw

SPILLS_NAME = "spills.json"


@dataclass(frozen=True, slots=True)
class SpillFile:
    """The spill file of one scatter task."""

    machine: str
    boot: str
    path: str
    index: SpillIndex

    def is_whole(self) -> bool:
        """Return whether the file is there and, if the machine has restarted, undamaged; works where ``open`` does."""
        try:
            with self.open() as reader:
                return self.boot == boot_id() or reader.is_whole()
        except FileNotFoundError:
            return False

    def open(self) -> SpillReader:
        """Return a reader; works on ``machine``, or anywhere if the file lies on shared storage."""
        return SpillReader(Path(self.path), self.index)


def write_spill_list(folder: Path, files: Sequence[SpillFile]) -> None:
    """Write the list that gather tasks read, so that a task does not have to carry it."""
    write_atomic(folder / SPILLS_NAME, json.dumps([asdict(file) for file in files]))


def read_spill_list(folder: str) -> list[SpillFile]:
    """Return the spill files by number of their scatter task."""
    path = Path(folder, SPILLS_NAME)
    return _read_list(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _read_list(path: str, _: int) -> list[SpillFile]:
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    return [SpillFile(**entry | {"index": SpillIndex(**entry["index"])}) for entry in entries]


@dataclass(frozen=True, slots=True)
class SpilledBucket:
    """The ``Pieces`` of a bucket whose spill files can be opened here, one at a time."""

    files: Sequence[SpillFile]
    tables: Sequence[SpillTable]
    """For each file, the part of the index that holds the bucket."""
    bucket: int

    def sizes(self) -> tuple[int, int]:
        """Return the number of rows, and the bytes of texts and extras."""
        sizes = [table.sizes(self.bucket) for table in self.tables]
        return sum(rows for rows, _ in sizes), sum(num_bytes for _, num_bytes in sizes)

    def load(self, buffer: RowBuffer) -> None:
        """Put all rows, with origins, into ``buffer``, in input order."""
        for origin, (file, table) in enumerate(zip(self.files, self.tables, strict=True)):
            with file.open() as reader:
                reader.load(self.bucket, table, buffer, origin)

    def frames(self) -> Iterator[Rows]:
        """Yield all rows, with origins, in input order."""
        for origin, (file, table) in enumerate(zip(self.files, self.tables, strict=True)):
            with file.open() as reader:
                for rows in reader.frames(self.bucket, table):
                    yield _with_origin(rows, origin)


def spilled_buckets(files: Sequence[SpillFile], buckets: range) -> Iterator[tuple[int, SpilledBucket]]:
    """Yield the buckets, as they lie in spill files that can be opened here."""
    tables = []
    for file in files:
        with file.open() as reader:
            tables.append(reader.table(buckets.start, buckets.stop))
    yield from ((bucket, SpilledBucket(files, tables, bucket)) for bucket in buckets)


@dataclass(frozen=True, slots=True)
class Request:
    """Which buckets are wanted from the spill files of one machine."""

    folder: str
    machine: str
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class SpillSegment:
    """A bucket of one spill file, as bytes."""

    origin: int
    bucket: int
    rows: int
    num_bytes: int
    raw: bytes


def read_segments(request: Request) -> list[SpillSegment]:
    """Read what ``request`` asks for; runs on its machine.

    Raises:
        MachineLostError: If the machine is there but its files are not, or not whole: it has restarted.
    """
    files = read_spill_list(request.folder)
    own = [(origin, file) for origin, file in enumerate(files) if file.machine == request.machine]
    if not _are_whole(tuple(file for _, file in own)):
        raise machine_lost([request.machine])
    segments = []
    for origin, file in own:
        with file.open() as reader:
            table = reader.table(request.first, request.stop)
            for bucket in range(request.first, request.stop):
                rows, num_bytes = table.sizes(bucket)
                if rows:
                    segments.append(SpillSegment(origin, bucket, rows, num_bytes, reader.raw(bucket, table)))
    return segments


@lru_cache(maxsize=1)
def _are_whole(files: tuple[SpillFile, ...]) -> bool:
    return all(file.is_whole() for file in files)


def remove_folder(folder: str) -> None:
    """Delete a folder of spill files on this machine, and the one it lies in if that is empty then."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        Path(folder).parent.rmdir()


@dataclass(frozen=True, slots=True)
class FetchedBucket:
    """The ``Pieces`` of a bucket that was fetched."""

    files: Sequence[SpillFile]
    segments: Sequence[SpillSegment]

    def sizes(self) -> tuple[int, int]:
        """Return the number of rows, and the bytes of texts and extras."""
        return sum(segment.rows for segment in self.segments), sum(segment.num_bytes for segment in self.segments)

    def load(self, buffer: RowBuffer) -> None:
        """Put all rows, with origins, into ``buffer``, in input order."""
        for rows in self.frames():
            buffer.add(rows)

    def frames(self) -> Iterator[Rows]:
        """Yield all rows, with origins, in input order."""
        for segment in self.segments:
            for rows in iter_raw(segment.raw, Path(self.files[segment.origin].path)):
                yield _with_origin(rows, segment.origin)


def group_by_bucket(files: Sequence[SpillFile], fetched: Sequence[Sequence[SpillSegment]]) -> dict[int, FetchedBucket]:
    """Return the fetched buckets, each in input order."""
    found: dict[int, list[SpillSegment]] = defaultdict(list)
    for segment in sorted((segment for part in fetched for segment in part), key=lambda segment: segment.origin):
        found[segment.bucket].append(segment)
    return {bucket: FetchedBucket(files, segments) for bucket, segments in found.items()}


def _with_origin(rows: Rows, origin: int) -> Rows:
    return replace(rows, origins=np.full(len(rows), origin, np.uint32))
