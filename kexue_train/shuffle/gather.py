"""The second pass: collects the records of one shard from all spill files, sorts them by key and writes the shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.arrow_shards import ShardWriter, shard_name
from kexue_train.artifacts import file_checksum, write_atomic
from kexue_train.shuffle.keys import hash_texts, sum_words, to_integers
from kexue_train.shuffle.plan import bucket_bounds
from kexue_train.shuffle.scatter import spill_path
from kexue_train.shuffle.sort_rows import iter_sorted, text_bytes
from kexue_train.shuffle.text_shards import TEXT_SCHEMA, BatchCutter


@dataclass(frozen=True, slots=True)
class GatherTask:
    """What one call of ``gather`` needs."""

    shard: int
    num_shards: int
    buckets_per_shard: int
    pieces: npt.NDArray[np.int32]
    """Shape (n, 3), sorted: (bucket, scatter task, record batch in its spill file) of all that belongs to the shard."""
    bucket_bytes: int
    """How much text may be held at a time."""
    spill_folder: str
    out_folder: str


@dataclass(slots=True)
class GatherResult:
    """What a gather task did; the mark that its shard is done."""

    rows: int = 0
    text_bytes: int = 0
    checksum: int = 0
    dropped: int = 0
    dropped_checksum: int = 0
    file_bytes: int = 0
    file_checksum: str = ""

    def to_json(self) -> str:
        """One line."""
        values = {name: getattr(self, name) for name in self.__slots__}
        sums = {"checksum": f"{self.checksum:032x}", "dropped_checksum": f"{self.dropped_checksum:032x}"}
        return json.dumps(values | sums)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of ``to_json``."""
        values: dict[str, Any] = json.loads(text)
        return cls(**{**values, **{name: int(values[name], 16) for name in ("checksum", "dropped_checksum")}})


def shard_marker_path(folder: Path, shard: int) -> Path:
    """The ``GatherResult`` of a shard; exists once the shard is done."""
    return folder / f"shard-{shard:06d}.json"


def gather(task: GatherTask) -> int:
    """Write the shard of ``task`` unless it is done; returns its number."""
    spills, out = Path(task.spill_folder), Path(task.out_folder)
    marker = shard_marker_path(spills, task.shard)
    if marker.exists():
        return task.shard
    result = GatherResult()
    bounds = bucket_bounds(task.num_shards * task.buckets_per_shard)
    path = out / shard_name(task.shard, task.num_shards)
    with ShardWriter(path, TEXT_SCHEMA) as writer:
        cutter = BatchCutter()
        for bucket in range(task.shard * task.buckets_per_shard, (task.shard + 1) * task.buckets_per_shard):
            read = _Reader(spills, task.pieces[task.pieces[:, 0] == bucket, 1:])
            for table in iter_sorted(read, bounds[bucket], bounds[bucket + 1], task.bucket_bytes):
                _account(table, result)
                for chunk in table.column("text").chunks:
                    for batch in cutter.cut(chunk):
                        writer.write(batch)
        for batch in cutter.finish():
            writer.write(batch)
    result.file_bytes, result.file_checksum = path.stat().st_size, file_checksum(path)
    write_atomic(marker, result.to_json())
    return task.shard


@dataclass(frozen=True, slots=True)
class _Reader:
    folder: Path
    pieces: npt.NDArray[np.int32]

    def __call__(self) -> Iterator[pa.RecordBatch]:
        options = pa.ipc.IpcReadOptions(use_threads=False)
        # One file is open at a time, however many there are.
        for index in np.unique(self.pieces[:, 0]).tolist():
            path = str(spill_path(self.folder, index))
            with pa.OSFile(path) as file, pa.ipc.open_file(file, options=options) as spill:
                for batch in self.pieces[self.pieces[:, 0] == index, 1].tolist():
                    yield spill.get_batch(batch)


def _account(table: pa.Table, result: GatherResult) -> None:
    for chunk in table.column("text").chunks:
        hashes = hash_texts(chunk)
        result.rows += len(chunk)
        result.checksum = (result.checksum + sum_words(hashes)) % (1 << 128)
    result.text_bytes += text_bytes(table)
    if "copies" not in table.column_names:
        return
    extra = table.column("copies").to_numpy() - np.uint64(1)
    rows = np.flatnonzero(extra)
    if len(rows):
        hashes = hash_texts(table.column("text").take(pa.array(rows)).combine_chunks())
        counts = extra[rows].tolist()
        result.dropped += sum(counts)
        weighted = sum(value * count for value, count in zip(to_integers(hashes), counts, strict=True))
        result.dropped_checksum = (result.dropped_checksum + weighted) % (1 << 128)
