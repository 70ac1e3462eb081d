"""Writes and reads shards in the formats a shuffle can give: Arrow, Parquet, JSON Lines, plain lines, CSV, TSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from pydantic_core import from_json, to_json

from kexue_train.corpus.compression import Sink, open_compressor
from kexue_train.corpus.formats import OUTPUTS
from kexue_train.foundation.arrow_arrays import lengths_of, offsets_of, to_binary
from kexue_train.foundation.arrow_shards import ShardWriter, read_shard
from kexue_train.foundation.write_behind import WriteBehindFile, new_file
from kexue_train.shuffle.text_outputs import JsonOutput, LinesOutput, TsvOutput

_BATCH_ROWS = 4096
_BATCH_BYTES = 4 * 2**20

Columns = tuple[pa.LargeBinaryArray, pa.LargeBinaryArray | None]
"""Texts, and the kept columns of each row as a JSON array."""


_PARQUET_ROWS, _PARQUET_BYTES = 2**17, 16 * 2**20  # of a row group
_READ_BYTES = 8 * 2**20
_CSV_BLOCK_BYTES = 256 * 2**20
"""Above the longest row: Arrow reads whole rows only."""


def text_schema(keep: Sequence[str]) -> pa.Schema:
    """Return the columns of a text shard: ``text``, then the kept ones, all strings."""
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
    """Return the rows as a batch of a text shard."""
    texts, extras = columns
    arrays = [_alone(texts).view(pa.large_string()).cast(pa.string())]
    if extras is not None:
        rows = [from_json(value) for value in extras.to_pylist()]
        arrays += [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def from_record_batch(batch: pa.RecordBatch) -> Columns:
    """Convert what ``to_record_batch`` returned back into rows."""
    texts = batch.column(0).cast(pa.large_string()).view(pa.large_binary())
    if batch.num_columns == 1:
        return texts, None
    rows = zip(*(column.to_pylist() for column in batch.columns[1:]), strict=True)
    return texts, to_binary([to_json(list(row)) for row in rows])


def _alone(texts: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
    """Return ``texts`` over a buffer that ends with them.

    Arrow fills the last 64 bytes of what it writes with whatever follows in the buffer. That depends on how the rows
    arrived, and so would the bytes of the file.
    """
    offsets = offsets_of(texts)
    data = texts.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    buffers = [None, pa.py_buffer(offsets - offsets[0]), data]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(texts), buffers)


def _join(parts: list[pa.LargeBinaryArray]) -> pa.LargeBinaryArray:
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def shard_file_name(output: str, shard: int, num_shards: int) -> str:
    """Return a name like ``data-00003-of-00016.arrow``."""
    return f"data-{shard:05d}-of-{num_shards:05d}{OUTPUTS[output].suffixes[0]}"


class ShardOutput(Protocol):
    """Takes the rows of one shard in order."""

    def write(self, texts: pa.LargeBinaryArray, extras: pa.LargeBinaryArray | None) -> None:
        """Append rows."""
        ...


@dataclass(frozen=True, slots=True)
class ShardForm:
    """What a shard is written as."""

    output: str
    """Name of the format in ``formats.OUTPUTS``."""
    keep: tuple[str, ...] = ()
    """The kept columns."""
    compression: str | None = None
    """Of the file as a whole; only where the format allows it."""
    line_end: bytes = b"\n"
    """The byte that ends a line of the format ``lines``."""


@contextmanager
def open_shard(path: Path, form: ShardForm, *, durable: bool) -> Iterator[tuple[ShardOutput, WriteBehindFile]]:
    """Open a new shard, and the file it goes to; an error leaves no file."""
    with _FORMATS[form.output].open(path, form, durable) as opened:
        yield opened


def iter_shard(path: Path, output: str, keep: Sequence[str]) -> Iterator[Columns]:
    """Yield the rows of a shard in pieces, for checking; a damaged file raises what its reader raises."""
    return _FORMATS[output].read(path, keep)


Opened = Iterator[tuple[ShardOutput, WriteBehindFile]]


@contextmanager
def _open_arrow(path: Path, form: ShardForm, durable: bool) -> Opened:
    schema = text_schema(form.keep)
    with ShardWriter(path, schema, durable=durable) as writer:
        shard = _BatchOutput(writer.write, schema, BatchCutter())
        yield shard, writer.file
        shard.finish()


def _read_arrow(path: Path, _: Sequence[str]) -> Iterator[Columns]:
    yield from map(from_record_batch, read_shard(path).to_batches())


@contextmanager
def _open_parquet(path: Path, form: ShardForm, durable: bool) -> Opened:
    import pyarrow.parquet as pq  # noqa: PLC0415  # costs memory that most shuffles do not need

    schema = text_schema(form.keep)
    settings = {"compression": "zstd", "use_dictionary": False, "write_statistics": False}
    with new_file(path, durable=durable) as file, pq.ParquetWriter(file, schema, **settings) as writer:
        shard = _BatchOutput(writer.write_batch, schema, BatchCutter(_PARQUET_ROWS, _PARQUET_BYTES))
        yield shard, file
        shard.finish()


def _read_parquet(path: Path, _: Sequence[str]) -> Iterator[Columns]:
    import pyarrow.parquet as pq  # noqa: PLC0415  # costs memory that most shuffles do not need

    with pq.ParquetFile(path) as file:
        yield from map(from_record_batch, file.iter_batches(use_threads=False))


@contextmanager
def _open_json_lines(path: Path, form: ShardForm, durable: bool) -> Opened:
    with new_file(path, durable=durable) as file, open_compressor(file, form.compression) as sink:
        yield JsonOutput(sink, form.keep), file


def _read_json_lines(path: Path, keep: Sequence[str]) -> Iterator[Columns]:
    for lines in _read_lines(path):
        rows = [from_json(line) for line in lines]
        texts = to_binary([row["text"].encode() for row in rows])
        extras = to_binary([to_json([row[name] for name in keep]) for row in rows]) if keep else None
        yield texts, extras


@contextmanager
def _open_plain_lines(path: Path, form: ShardForm, durable: bool) -> Opened:
    with new_file(path, durable=durable) as file, open_compressor(file, form.compression) as sink:
        yield LinesOutput(sink, form.line_end), file


def _read_plain_lines(path: Path, _: Sequence[str]) -> Iterator[Columns]:
    for lines in _read_lines(path):
        yield to_binary(lines), None


@contextmanager
def _open_csv(path: Path, form: ShardForm, durable: bool) -> Opened:
    from pyarrow.csv import CSVWriter  # noqa: PLC0415  # costs memory that most shuffles do not need

    schema = text_schema(form.keep)
    with (
        new_file(path, durable=durable) as file,
        open_compressor(file, form.compression) as sink,
        CSVWriter(_as_arrow_file(sink), schema) as writer,
    ):
        shard = _BatchOutput(writer.write_batch, schema, BatchCutter())
        yield shard, file
        shard.finish()


def _read_csv(path: Path, keep: Sequence[str]) -> Iterator[Columns]:
    from pyarrow import csv  # noqa: PLC0415  # costs memory that most shuffles do not need

    # Of a missing value the writer leaves nothing, of an empty one a pair of quotation marks.
    as_written = csv.ConvertOptions(
        column_types=text_schema(keep), null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    whole_rows = csv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False)
    with csv.open_csv(path, whole_rows, csv.ParseOptions(newlines_in_values=True), as_written) as batches:
        yield from map(from_record_batch, batches)


@contextmanager
def _open_tsv(path: Path, form: ShardForm, durable: bool) -> Opened:
    with new_file(path, durable=durable) as file, open_compressor(file, form.compression) as sink:
        shard = TsvOutput(sink)
        shard.write_header(text_schema(form.keep).names)
        batches = _BatchOutput(shard.write_batch, text_schema(form.keep), BatchCutter())
        yield batches, file
        batches.finish()


def _read_tsv(path: Path, keep: Sequence[str]) -> Iterator[Columns]:
    is_header = True
    for lines in _read_lines(path):
        rows = [line.split(b"\t") for line in lines[is_header:]]
        is_header = False
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        if columns:
            yield from_record_batch(pa.record_batch(columns, schema=text_schema(keep)))


class _Format(NamedTuple):
    """How the shards of one output format are written and read."""

    open: Callable[[Path, ShardForm, bool], AbstractContextManager[tuple[ShardOutput, WriteBehindFile]]]
    read: Callable[[Path, Sequence[str]], Iterator[Columns]]


_FORMATS = {
    "arrow": _Format(_open_arrow, _read_arrow),
    "parquet": _Format(_open_parquet, _read_parquet),
    "jsonl": _Format(_open_json_lines, _read_json_lines),
    "lines": _Format(_open_plain_lines, _read_plain_lines),
    "csv": _Format(_open_csv, _read_csv),
    "tsv": _Format(_open_tsv, _read_tsv),
}
"""Name of an output format -> how it is written and read; the same names as in ``formats.OUTPUTS``."""


class _BatchOutput:
    def __init__(self, write: Any, schema: pa.Schema, cutter: BatchCutter) -> None:
        self._write, self._schema, self._cutter = write, schema, cutter

    def write(self, texts: pa.LargeBinaryArray, extras: pa.LargeBinaryArray | None) -> None:
        for columns in self._cutter.cut(texts, extras):
            self._write(to_record_batch(columns, self._schema))

    def finish(self) -> None:
        for columns in self._cutter.finish():
            self._write(to_record_batch(columns, self._schema))


def _as_arrow_file(sink: Sink) -> pa.NativeFile:
    return sink if isinstance(sink, pa.NativeFile) else pa.PythonFile(sink, mode="w")


def _read_lines(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        while lines := file.readlines(_READ_BYTES):
            yield [line.removesuffix(b"\n") for line in lines]
