"""Reads Arrow IPC files and streams: the columns that are needed of a range of record batches.

A batch may be larger than memory if the file can be mapped and the batch is not compressed: then it is looked at block
by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pyarrow as pa

from kexue_train.corpus.arrow_messages import BatchSize, choose_buffers, iter_batch_sizes, measure_message
from kexue_train.corpus.column_files import explain_damage, too_large
from kexue_train.corpus.columns import Columns, find_columns, read_batch
from kexue_train.corpus.mapped_file import MappedFile, open_mapped
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.corpus.remote import is_uri
from kexue_train.corpus.streams import ByteStream, is_pipe, open_seekable, open_stream
from kexue_train.foundation.errors import CorpusError, MemoryLimitError
from kexue_train.foundation.runtime import format_size

_FILE_MAGIC = b"ARROW1"
_STREAM_START = 8
"""Where in a file the stream begins that it holds."""
_STEP_BYTES = 1 << 20
_COPY = "copy it to a file on this machine, and its batches without compression, and name that"
_MARK_BYTES = 8  # before the metadata of a message


def count_batches(path: str) -> int:
    """Record batches of an Arrow IPC file; 1 for a stream, which cannot be cut.

    Raises:
        CorpusError: If the file is damaged.
    """
    with explain_damage(path, "Arrow IPC"), open_seekable(path) as raw:
        if raw.read(len(_FILE_MAGIC)) != _FILE_MAGIC:
            return 1
        return int(pa.ipc.open_file(raw).num_record_batches)


def check_arrow(path: str, options: ReadOptions) -> None:
    """Make sure that each record batch can be read in ``options.memory_bytes``, from the metadata alone.

    Raises:
        MemoryLimitError: If one cannot.
        CorpusError: If the file is damaged, or has not the columns.
    """
    with explain_damage(path, "Arrow IPC"), open_mapped(path) as source:
        is_file = source.read_at(0, len(_FILE_MAGIC)) == _FILE_MAGIC
        schema = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(source.for_arrow()).schema
        _check_batches(path, source, schema, find_columns(path, schema, options), is_file=is_file)


def read_arrow(
    path: str, compression: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of an Arrow IPC stream, or of the batches ``[start, end)`` of a file; positions are rows.

    Raises:
        MemoryLimitError: If a record batch takes more than ``options.memory_bytes``, before it is read.
    """
    with explain_damage(path, "Arrow IPC"):
        with open_stream(path, compression) as stream:
            head = stream.read(len(_FILE_MAGIC))
            is_file = head == _FILE_MAGIC
            if not is_file and (compression or is_pipe(path) or is_uri(path)):
                yield from _read_stream(path, head, stream, options)
                return
        if is_pipe(path):
            raise CorpusError(
                f"{path}: is an Arrow file, which is not read from front to back; name the file as an input"
            )
        with open_mapped(path, compression) as source:
            if is_file:
                yield from _read_file(path, source, options, start, end)
            else:
                yield from _read_mapped_stream(path, source, options)


def _read_stream(path: str, head: bytes, stream: ByteStream, options: ReadOptions) -> Iterator[RecordBlock]:
    watched = _Watched(path, head, stream, options.memory_bytes)
    row = 0
    with pa.ipc.open_stream(pa.PythonFile(watched, mode="r")) as reader:
        columns = find_columns(path, reader.schema, options)
        watched.chosen = choose_buffers(reader.schema, _fields(reader.schema, columns))
        for batch in reader:
            yield from read_batch(batch, columns, row)
            row += batch.num_rows
    if watched.is_at_end:  # Arrow takes a stream cut between two batches for a whole one
        raise pa.ArrowInvalid("its end mark is missing, so it is cut off")


def _read_mapped_stream(path: str, source: MappedFile, options: ReadOptions) -> Iterator[RecordBlock]:
    schema = pa.ipc.open_stream(source.for_arrow()).schema
    columns = find_columns(path, schema, options)
    _check_batches(path, source, schema, columns, is_file=False)
    row = 0
    with pa.ipc.open_stream(source.for_arrow(), options=_options(_fields(schema, columns))) as reader:
        for batch in reader:
            for block in read_batch(batch, columns, row):
                yield block
                source.release()
            row += batch.num_rows
    for _ in iter_batch_sizes(source.read_at, 0, None):  # Arrow takes a stream cut between two batches for a whole one
        pass


def _read_file(
    path: str, source: MappedFile, options: ReadOptions, start: int, end: int | None
) -> Iterator[RecordBlock]:
    schema = pa.ipc.open_file(source.for_arrow()).schema
    columns = find_columns(path, schema, options)
    # Of chosen columns Arrow makes a copy, and all columns of a mapped file it leaves where they are.
    is_left = _check_batches(path, source, schema, columns, is_file=True)
    fields = None if is_left else _fields(schema, columns)
    with pa.ipc.open_file(source.for_arrow(), options=_options(fields)) as file:
        row = 0
        for index in range(file.num_record_batches if end is None else min(end, file.num_record_batches)):
            batch = file.get_batch(index)
            if index >= start:
                for block in read_batch(batch, columns, row):
                    yield block
                    source.release()
            row += batch.num_rows


def _options(fields: list[int] | None) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(use_threads=False, included_fields=fields)


def _fields(schema: pa.Schema, columns: Columns) -> list[int]:
    return sorted({schema.get_field_index(steps[0]) for steps in columns.needed})


def _check_batches(path: str, source: MappedFile, schema: pa.Schema, columns: Columns, *, is_file: bool) -> bool:
    """Refuse a batch that is too large; damage is left to be found by reading.

    Returns:
        Whether the batches lie in a mapping as Arrow has them in memory, so that none takes any.
    """
    chosen, limit = choose_buffers(schema, _fields(schema, columns)), columns.options.memory_bytes
    batches = dictionaries = 0
    with suppress(pa.ArrowInvalid):
        for size in iter_batch_sizes(source.read_at, _STREAM_START if is_file else 0, chosen):
            if source.is_mapped and not size.unpacked:
                if not size.is_dictionary:
                    return True  # a writer compresses all batches, or none
                continue
            dictionaries += (size.stored + size.unpacked) * size.is_dictionary
            need = dictionaries + (size.stored + size.unpacked) * (not size.is_dictionary)
            if need > limit:
                raise _too_large(path, batches, size, need, limit, _write_again(path, is_file=is_file))
            batches += not size.is_dictionary
    return False


def _too_large(path: str, batch: int, size: BatchSize, need_bytes: int, limit: int, remedy: str) -> MemoryLimitError:
    part = f"record batch {batch} ({format_size(size.unpacked or size.stored)})"
    return too_large(path, part, need_bytes, limit, remedy)


def _write_again(path: str, *, is_file: bool) -> str:
    """Return how to make a file of which no batch takes memory."""
    if is_uri(path):
        return _COPY
    batches = "(r.get_batch(i) for i in range(r.num_record_batches))" if is_file else "r"
    code = (
        f"import pyarrow as pa; r = pa.ipc.open_{'file' if is_file else 'stream'}(pa.memory_map({path!r})); "
        f"w = pa.ipc.new_file('plain.arrow', r.schema); [w.write_batch(b) for b in {batches}]; w.close()"
    )
    return f'write it again without compression (python -c "{code}")'


class _Watched:
    """A stream of which the first bytes were read before; remembers whether it was read beyond its end.

    Of each message Arrow asks for the metadata and then, at once, for the body.
    """

    closed = False  # what Arrow asks a file for, as for ``close``

    def __init__(self, path: str, head: bytes, stream: ByteStream, limit: int) -> None:
        self._path, self._head, self._stream, self._limit = path, head, stream, limit
        self._before, self._batches = b"", 0
        self.chosen: set[int] | None = None
        """The buffers that are unpacked; None: all."""
        self.is_at_end = False

    def read(self, size: int) -> bytes:
        if size > self._limit:
            raise self._too_large(BatchSize(is_dictionary=False, stored=size, unpacked=0), size)
        data, self._head = self._head[:size], self._head[size:]
        parts, missing = [data], size - len(data)
        while missing and (more := self._stream.read(min(missing, _STEP_BYTES))):  # a damaged stream asks for anything
            parts.append(more)
            missing -= len(more)
        self.is_at_end = missing > 0
        data = b"".join(parts)
        if size > _MARK_BYTES:
            self._check(data)
        self._before = data
        return data

    def close(self) -> None:
        """Leave the closing to whoever opened the file."""

    def _check(self, body: bytes) -> None:
        """Refuse a body that takes too much unpacked, if what was read before are the metadata of a batch."""
        try:
            size, _ = measure_message(self._before, lambda start, num: body[start : start + num], self.chosen)
        except pa.ArrowInvalid:
            return
        if size and (need := len(body) + size.unpacked) > self._limit:
            raise self._too_large(size, need)
        if size and not size.is_dictionary:
            self._batches += 1

    def _too_large(self, size: BatchSize, need_bytes: int) -> MemoryLimitError:
        return _too_large(self._path, self._batches, size, need_bytes, self._limit, _COPY)
