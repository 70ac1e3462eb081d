"""Cuts a stream of rows into record batches by rows and bytes alone, however the rows arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from pydantic_core import from_json, to_json

from kexue_train.shuffle.rows import lengths_of

_BATCH_ROWS = 4096
_BATCH_BYTES = 4 * 2**20

Columns = tuple[pa.LargeBinaryArray, pa.LargeBinaryArray | None]
"""Texts, and the kept columns of each row as a JSON array."""


def text_schema(keep: Sequence[str]) -> pa.Schema:
    """The columns of a text shard: ``text``, then the kept ones, all strings."""
    return pa.schema([("text", pa.string()), *((name, pa.string()) for name in keep)])


class BatchCutter:
    """Gives batches of at most 4,096 rows that end with the row that reaches 4 MiB of text."""

    def __init__(self, rows: int = _BATCH_ROWS, num_bytes: int = _BATCH_BYTES) -> None:
        self._max_rows, self._max_bytes = rows, num_bytes
        self._parts: list[Columns] = []
        self._rows = self._bytes = 0

    def cut(self, texts: pa.LargeBinaryArray, extras: pa.LargeBinaryArray | None) -> Iterator[Columns]:
        """Yield the batches that these rows complete."""
        ends = np.cumsum(lengths_of(texts))
        start = before = 0
        while start < len(texts):
            limit = before + self._max_bytes - self._bytes
            stop = min(start + self._max_rows - self._rows, int(np.searchsorted(ends, limit)) + 1)
            is_full = stop <= len(texts)
            stop = min(stop, len(texts))
            self._parts.append((texts[start:stop], extras if extras is None else extras[start:stop]))
            self._rows += stop - start
            self._bytes += int(ends[stop - 1]) - before
            start, before = stop, int(ends[stop - 1])
            if is_full:
                yield from self.finish()

    def finish(self) -> Iterator[Columns]:
        """Yield what is left."""
        if self._parts:
            texts = _join([texts for texts, _ in self._parts])
            extras = [extras for _, extras in self._parts if extras is not None]
            self._parts, self._rows, self._bytes = [], 0, 0
            yield texts, _join(extras) if extras else None


def to_record_batch(columns: Columns, schema: pa.Schema) -> pa.RecordBatch:
    """The rows as a batch of a text shard."""
    texts, extras = columns
    arrays = [texts.view(pa.large_string()).cast(pa.string())]
    if extras is not None:
        rows = [from_json(value) for value in extras.to_pylist()]
        arrays += [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def from_record_batch(batch: pa.RecordBatch) -> Columns:
    """The inverse of ``to_record_batch``."""
    texts = batch.column(0).cast(pa.large_string()).view(pa.large_binary())
    if batch.num_columns == 1:
        return texts, None
    rows = zip(*(column.to_pylist() for column in batch.columns[1:]), strict=True)
    return texts, pa.array([to_json(list(row)) for row in rows], pa.large_binary())


def _join(parts: list[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
