"""Reads Parquet and Arrow files: the columns that are needed, a range of row groups or batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from kexue_train.corpus.columns import BATCH_ROWS, find_columns, read_batch
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.corpus.streams import ByteStream, is_pipe, open_seekable, open_stream
from kexue_train.foundation.errors import CorpusError, DamagedInputError

_FILE_MAGIC = b"ARROW1"
_STEP_BYTES = 1 << 20


def count_row_groups(path: str) -> int:
    """Count the row groups of a Parquet file.

    Raises:
        CorpusError: If the file is damaged.
    """
    with _explain_damage(path, "Parquet"), open_seekable(path) as raw, _open_parquet(raw) as file:
        return int(file.num_row_groups)


def count_batches(path: str) -> int:
    """Record batches of an Arrow IPC file; 1 for a stream, which cannot be cut.

    Raises:
        CorpusError: If the file is damaged.
    """
    with _explain_damage(path, "Arrow IPC"), open_seekable(path) as raw:
        if raw.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
            return 1
        return int(pa.ipc.open_file(raw).num_record_batches)


def read_parquet(
    path: str, compression: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of the row groups ``[start, end)``; positions are row numbers of the file."""
    with (
        _explain_damage(path, "Parquet"),
        open_seekable(path, compression) as raw,
        _open_parquet(raw) as file,
    ):
        columns = find_columns(path, file.schema_arrow, options)
        names = [".".join(steps) for steps in columns.needed]
        groups = range(file.num_row_groups)
        row = sum(file.metadata.row_group(group).num_rows for group in groups[:start])
        for group in groups[start:end]:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=names, use_threads=False):
                yield from read_batch(batch, columns, row)
                row += batch.num_rows


def read_arrow(
    path: str, compression: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of an Arrow IPC stream, or of the batches ``[start, end)`` of a file; positions are rows."""
    with _explain_damage(path, "Arrow IPC"):
        with open_stream(path, compression) as stream:
            head = stream.read(len(_FILE_MAGIC))
            if head != _FILE_MAGIC:
                yield from _read_stream(path, head, stream, options)
                return
        if is_pipe(path):
            raise CorpusError(
                f"{path}: is an Arrow file, which is not read from front to back; name the file as an input"
            )
        with open_seekable(path, compression) as raw:
            yield from _read_file(path, raw, options, start, end)


def _read_stream(path: str, head: bytes, stream: ByteStream, options: ReadOptions) -> Iterator[RecordBlock]:
    watched = _Watched(head, stream)
    row = 0
    with pa.ipc.open_stream(pa.PythonFile(watched, mode="r")) as reader:
        columns = find_columns(path, reader.schema, options)
        for batch in reader:
            yield from read_batch(batch, columns, row)
            row += batch.num_rows
    if watched.is_at_end:  # Arrow takes a stream cut between two batches for a whole one
        raise pa.ArrowInvalid("its end mark is missing, so it is cut off")


def _read_file(path: str, raw: object, options: ReadOptions, start: int, end: int | None) -> Iterator[RecordBlock]:
    schema = pa.ipc.open_file(raw).schema
    columns = find_columns(path, schema, options)
    indices = sorted({schema.get_field_index(steps[0]) for steps in columns.needed})
    with pa.ipc.open_file(raw, options=pa.ipc.IpcReadOptions(use_threads=False, included_fields=indices)) as file:
        row = 0
        for index in range(file.num_record_batches if end is None else min(end, file.num_record_batches)):
            batch = file.get_batch(index)
            if index >= start:
                yield from read_batch(batch, columns, row)
            row += batch.num_rows


def _open_parquet(raw: object) -> pq.ParquetFile:
    return pq.ParquetFile(raw, pre_buffer=False)


class _Watched:
    """A stream of which the first bytes were read before; remembers whether it was read beyond its end."""

    closed = False  # what Arrow asks a file for, as for ``close``

    def __init__(self, head: bytes, stream: ByteStream) -> None:
        self._head, self._stream = head, stream
        self.is_at_end = False

    def read(self, size: int) -> bytes:
        data, self._head = self._head[:size], self._head[size:]
        parts, missing = [data], size - len(data)
        while missing and (more := self._stream.read(min(missing, _STEP_BYTES))):  # a damaged stream asks for anything
            parts.append(more)
            missing -= len(more)
        self.is_at_end = missing > 0
        return b"".join(parts)

    def close(self) -> None:
        """Leave the closing to whoever opened the file."""


@contextmanager
def _explain_damage(path: str, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:  # what damaged metadata leads to
        if isinstance(error, OSError) and error.errno is not None:
            raise CorpusError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        first, _, _ = str(error).partition("\n")
        if isinstance(error, pa.ArrowNotImplementedError):
            raise CorpusError(
                f"{path}: uses a part of {kind} that pyarrow {pa.__version__} cannot read ({first}); write the file "
                "again without it, or leave it out"
            ) from None
        raise DamagedInputError(
            f"{path}: damaged, or not a file of format {kind} ({first or 'it needs more memory than there is'}); "
            "fetch or make the file again, or leave it out"
        ) from None
