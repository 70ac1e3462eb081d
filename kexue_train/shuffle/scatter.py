"""The first pass: reads one range of one input and writes its records, grouped by bucket, to one spill file."""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.artifacts import write_atomic
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import count_lines, read_records
from kexue_train.corpus.records import RecordBlock, Rejected
from kexue_train.errors import CorpusError
from kexue_train.shuffle.keys import content_keys, hash_texts, position_keys, sum_words
from kexue_train.shuffle.plan import InputRange, bucket_bounds

SPILL_SCHEMA = pa.schema([("text", pa.large_string()), ("key_high", pa.uint64()), ("key_low", pa.uint64())])
COPIES = pa.field("copies", pa.uint64())
"""With ``dedup``: how many equal records this one stands for."""


@dataclass(frozen=True, slots=True)
class ScatterTask:
    """What one call of ``scatter`` needs; small, since it travels to a worker."""

    index: int
    source: Source
    range: InputRange
    text_key: str
    seed: int
    num_buckets: int
    drop_duplicates: bool
    fail_on_bad_record: bool
    block_bytes: int
    folder: str
    """Where spill files and done markers go."""


@dataclass(slots=True)
class ScatterResult:
    """What a scatter task did; kept beside its spill file as the mark that it is done."""

    rows: int = 0
    blank: int = 0
    checksum: int = 0
    """Sum of the hashes of the accepted texts modulo 2¹²⁸."""
    text_bytes: int = 0
    longest_text_bytes: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    batches: list[tuple[int, int]] = field(default_factory=list)
    """(bucket, text bytes) of each record batch of the spill file, in order."""
    rows_per_bucket: dict[int, int] = field(default_factory=dict)
    """Accepted records by bucket, copies counted."""

    def to_json(self) -> str:
        """One line."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(values | {"checksum": f"{self.checksum:032x}"})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of ``to_json``."""
        values: dict[str, Any] = json.loads(text)
        values["checksum"] = int(values["checksum"], 16)
        values["batches"] = [tuple(batch) for batch in values["batches"]]
        values["rows_per_bucket"] = {int(bucket): rows for bucket, rows in values["rows_per_bucket"].items()}
        return cls(**values)


def spill_path(folder: Path, index: int) -> Path:
    """The spill file of a scatter task: an Arrow IPC file, a record batch holds rows of one bucket."""
    return folder / f"spill-{index:06d}.arrow"


def marker_path(folder: Path, index: int) -> Path:
    """The ``ScatterResult`` of a task; exists once the task is done."""
    return folder / f"spill-{index:06d}.json"


def rejected_path(folder: Path, index: int) -> Path:
    """The records a task refused, as JSON Lines."""
    return folder / f"spill-{index:06d}.rejected.jsonl"


def scatter(task: ScatterTask) -> int:
    """Do ``task`` unless it is done; returns its index.

    Raises:
        CorpusError: If the file cannot be used, or holds a bad record and the task is told to fail on one.
    """
    folder = Path(task.folder)
    if marker_path(folder, task.index).exists():
        return task.index
    result = ScatterResult()
    bounds = np.array(bucket_bounds(task.num_buckets)[1:-1], np.uint64)
    schema = SPILL_SCHEMA.append(COPIES) if task.drop_duplicates else SPILL_SCHEMA
    path = spill_path(folder, task.index)
    aside = path.with_suffix(".tmp")
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    rejected = rejected_path(folder, task.index)
    rejected.unlink(missing_ok=True)
    with aside.open("wb") as file:
        with pa.ipc.new_file(file, schema, options=options) as writer:
            for block in _read(task):
                _keep_rejected(block, result, task, rejected)
                for bucket, batch, rows in _group(block, task, bounds, result):
                    writer.write_batch(batch)
                    result.batches.append((bucket, _text_bytes(batch)))
                    result.rows_per_bucket[bucket] = result.rows_per_bucket.get(bucket, 0) + rows
        os.fsync(file.fileno())
    aside.replace(path)
    write_atomic(marker_path(folder, task.index), result.to_json())
    return task.index


def _read(task: ScatterTask) -> Iterator[RecordBlock]:
    return read_records(
        task.source,
        text_key=task.text_key,
        start=task.range.start,
        end=task.range.end,
        block_bytes=task.block_bytes,
    )


def _group(
    block: RecordBlock, task: ScatterTask, bounds: np.ndarray[Any, Any], result: ScatterResult
) -> Iterator[tuple[int, pa.RecordBatch, int]]:
    """Yield (bucket, its rows, records they stand for) of a block."""
    num_rows = len(block.texts)
    if not num_rows:
        return
    hashes = hash_texts(block.texts)
    lengths = pc.binary_length(block.texts).to_numpy()
    result.rows += num_rows
    result.text_bytes += int(lengths.sum())
    result.longest_text_bytes = max(result.longest_text_bytes, int(lengths.max()))
    result.checksum = (result.checksum + sum_words(hashes)) % (1 << 128)
    if task.drop_duplicates:
        keys = content_keys(task.seed, hashes)
        order, copies = _unique(keys)
    else:
        keys = position_keys(task.seed, task.range.file_index, block.positions)
        order, copies = np.arange(num_rows), np.ones(num_rows, np.uint64)
    buckets = np.searchsorted(bounds, keys[0][order], side="right")
    by_bucket = np.argsort(buckets, kind="stable")
    order, copies, buckets = order[by_bucket], copies[by_bucket], buckets[by_bucket]
    columns = [block.texts.take(pa.array(order)), pa.array(keys[0][order]), pa.array(keys[1][order])]
    if task.drop_duplicates:
        table = pa.record_batch([*columns, pa.array(copies)], schema=SPILL_SCHEMA.append(COPIES))
    else:
        table = pa.record_batch(columns, schema=SPILL_SCHEMA)
    edges = [0, *(np.flatnonzero(np.diff(buckets)) + 1).tolist(), len(buckets)]
    for low, high in itertools.pairwise(edges):
        yield int(buckets[low]), table.slice(low, high - low), int(copies[low:high].sum())


def _text_bytes(batch: pa.RecordBatch) -> int:
    return int(pc.sum(pc.binary_length(batch.column(0))).as_py())


def _unique(keys: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Rows of the distinct keys, and how often each occurs."""
    order = np.lexsort((keys[1], keys[0]))
    high, low = keys[0][order], keys[1][order]
    is_first = np.concatenate([[True], (np.diff(high) != 0) | (np.diff(low) != 0)])
    first = np.flatnonzero(is_first)
    return order[first], np.diff(np.append(first, len(order))).astype(np.uint64)


def _keep_rejected(block: RecordBlock, result: ScatterResult, task: ScatterTask, path: Path) -> None:
    result.blank += block.blank
    if not block.rejected:
        return
    if task.fail_on_bad_record:
        raise _explain(block.rejected[0], task.source)
    counts = Counter(result.rejected)
    counts.update(entry.reason for entry in block.rejected)
    result.rejected = dict(sorted(counts.items()))
    with path.open("a", encoding="utf-8") as file:
        for entry in block.rejected:
            file.write(json.dumps(_describe(entry, task.source), ensure_ascii=False) + "\n")


def _describe(entry: Rejected, source: Source) -> dict[str, Any]:
    values = {"file": source.path, "position": entry.position, "reason": entry.reason, "detail": entry.detail}
    try:
        return values | {"raw": entry.raw.decode("utf-8")}
    except UnicodeDecodeError:
        return values | {"raw_base64": base64.b64encode(entry.raw).decode("ascii")}


def _explain(entry: Rejected, source: Source) -> CorpusError:
    if source.is_splittable:
        where = f"{source.path}:{count_lines(source, entry.position)}: record at byte {entry.position}"
    elif source.compression:
        where = f"{source.path}: line {entry.position + 1} of the unpacked text"
    else:
        where = f"{source.path}: row {entry.position}"
    return CorpusError(
        f"{where}: {entry.reason} ({entry.detail}); correct it, or leave such records out, counted and kept in "
        "rejected/, with --on-bad-record skip (shuffle.on_bad_record: skip)"
    )
