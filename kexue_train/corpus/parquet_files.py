"""Reads Parquet files: the needed columns of a range of row groups, as many rows at a time as fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kexue_train.corpus.column_files import explain_damage, too_large
from kexue_train.corpus.columns import BATCH_ROWS, find_columns, read_batch
from kexue_train.corpus.mapped_file import MappedFile, open_mapped
from kexue_train.corpus.parquet_pages import ChunkNeeds, measure_chunk
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.corpus.streams import open_seekable
from kexue_train.foundation.errors import MemoryLimitError
from kexue_train.foundation.runtime import format_size

_PAGE_BYTES = 1 << 20
"""Of a file that is not mapped so much is read at a time; else Arrow reads a column of a row group whole."""


def count_row_groups(path: str) -> int:
    """Count the row groups of a Parquet file.

    Raises:
        CorpusError: If the file is damaged.
    """
    with explain_damage(path, "Parquet"), open_seekable(path) as raw, pq.ParquetFile(raw) as file:
        return int(file.num_row_groups)


def check_parquet(path: str, options: ReadOptions) -> None:
    """Make sure that the largest row group can be read in ``options.memory_bytes``, from the metadata alone.

    Raises:
        MemoryLimitError: If it cannot.
        CorpusError: If the file is damaged, or has not the columns.
    """
    with explain_damage(path, "Parquet"), open_mapped(path) as source, _open_parquet(source) as file:
        groups = _RowGroups(path, source, file, options)
        largest = max(range(file.num_row_groups), key=groups.unpacked_bytes, default=None)
        if largest is not None and groups.unpacked_bytes(largest) > options.memory_bytes // 4:
            groups.rows_at_once(largest)


def read_parquet(
    path: str, compression: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of the row groups ``[start, end)``; positions are row numbers of the file.

    Raises:
        MemoryLimitError: If a row group takes more than ``options.memory_bytes``, before it is read.
    """
    with explain_damage(path, "Parquet"), open_mapped(path, compression) as source, _open_parquet(source) as file:
        groups = _RowGroups(path, source, file, options)
        row = sum(file.metadata.row_group(group).num_rows for group in range(min(start, file.num_row_groups)))
        for group in range(file.num_row_groups)[start:end]:
            for batch in groups.read(group):
                yield from read_batch(batch, groups.columns, row)
                row += batch.num_rows
                source.release()


def _open_parquet(source: MappedFile) -> pq.ParquetFile:
    return pq.ParquetFile(source.for_arrow(), pre_buffer=False, buffer_size=0 if source.is_mapped else _PAGE_BYTES)


class _RowGroups:
    """The row groups of one file, of which some columns are read."""

    def __init__(self, path: str, source: MappedFile, file: pq.ParquetFile, options: ReadOptions) -> None:
        self._path, self._source, self._file, self._options = path, source, file, options
        self.columns = find_columns(path, file.schema_arrow, options)
        self._names = [".".join(steps) for steps in self.columns.needed]
        leaves = [file.schema.column(i) for i in range(len(file.schema))]
        self._leaves = [i for i, leaf in enumerate(leaves) if self._is_needed(leaf.path)]
        self._num_levels = [(leaf.max_definition_level > 0) + (leaf.max_repetition_level > 0) for leaf in leaves]

    def unpacked_bytes(self, group: int) -> int:
        """Return the size of the needed columns, unpacked, but for what a dictionary saves."""
        return sum(int(chunk.total_uncompressed_size) for chunk in self._chunks(group))

    def read(self, group: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a group, in batches that are worth the time that a batch takes."""
        num_rows, has_large_page = self.rows_at_once(group)
        batches = self._file.iter_batches(num_rows, row_groups=[group], columns=self._names, use_threads=False)
        held: list[pa.RecordBatch] = []
        held_rows = held_bytes = 0
        for batch in batches:
            held.append(batch)
            held_rows, held_bytes = held_rows + batch.num_rows, held_bytes + batch.nbytes
            if held_rows >= BATCH_ROWS or held_bytes >= self._options.block_bytes:
                yield from _join(held)
                held, held_rows, held_bytes = [], 0, 0
                if has_large_page:  # Arrow takes room for the rest of it each time, and its allocator keeps some
                    pa.default_memory_pool().release_unused()
        yield from _join(held)

    def rows_at_once(self, group: int) -> tuple[int, bool]:
        """Return how many rows of a group to read at a time, and whether a page has far more than these.

        Raises:
            MemoryLimitError: If even one may take too much.
        """
        metadata, chunks = self._file.metadata.row_group(group), self._chunks(group)
        limit, block_bytes = self._options.memory_bytes, self._options.block_bytes
        found = [
            self._measure(chunk, leaf, limit // 2 // len(chunks))
            for chunk, leaf in zip(chunks, self._leaves, strict=True)
        ]
        held = sum(needs.held_bytes for needs in found)
        need = held + len(found) * max(needs.longest for needs in found)
        if need > limit:
            raise self._too_large(group, need)
        # Of lists a row has several values, on average so many.
        most = min(
            needs.max_values * metadata.num_rows // max(chunk.num_values, 1)
            for needs, chunk in zip(found, chunks, strict=True)
        )
        if held > limit // 2:
            most = most * (limit - held) // (limit // 2)
        usual = block_bytes * metadata.num_rows // max(self.unpacked_bytes(group), 1)
        has_large_page = max(needs.largest_page for needs in found) > 4 * block_bytes
        return max(min(BATCH_ROWS, most, usual), 1), has_large_page

    def _measure(self, chunk: Any, leaf: int, batch_bytes: int) -> ChunkNeeds:
        schema, path = self._file.schema_arrow, chunk.path_in_schema
        column = path if path in schema.names else path.partition(".")[0]
        if pa.types.is_dictionary(schema.field(column).type):
            # Arrow gathers its values in a table of its own, over the whole chunk.
            return ChunkNeeds(3 * chunk.total_uncompressed_size, chunk.num_values, 0, 0)
        try:
            return measure_chunk(
                self._source.read_at,
                chunk,
                batch_bytes,
                num_levels=self._num_levels[leaf],
                is_mapped=self._source.is_mapped,
            )
        except pa.ArrowInvalid:  # damage: Arrow will find it, after the rows before it
            return ChunkNeeds(0, chunk.num_values, 0, 0)

    def _chunks(self, group: int) -> list[Any]:
        metadata = self._file.metadata.row_group(group)
        return [metadata.column(leaf) for leaf in self._leaves]

    def _is_needed(self, path: str) -> bool:
        return any(path == name or path.startswith(f"{name}.") for name in self._names)

    def _too_large(self, group: int, need_bytes: int) -> MemoryLimitError:
        metadata, unpacked = self._file.metadata.row_group(group), self.unpacked_bytes(group)
        # Of as many rows that a page and a dictionary of all of them have a share of the memory each.
        rows = max(self._options.memory_bytes * metadata.num_rows // max(6 * unpacked, 2 * need_bytes), 1)
        code = (
            f"import pyarrow.parquet as pq; f = pq.ParquetFile({self._path!r}); "
            "w = pq.ParquetWriter('smaller.parquet', f.schema_arrow); "
            f"[w.write_batch(b) for b in f.iter_batches({rows})]; w.close()"
        )
        return too_large(
            self._path,
            f"row group {group} ({metadata.num_rows:,} rows, {format_size(unpacked)} in {', '.join(self._names)})",
            need_bytes,
            self._options.memory_bytes,
            f'write it again in row groups of {rows:,} rows (python -c "{code}")',
        )


def _join(batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    if len(batches) > 1:
        yield from pa.Table.from_batches(batches).combine_chunks().to_batches()
    else:
        yield from batches
