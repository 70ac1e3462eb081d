"""Reads the text column of Parquet and Arrow files."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kexue_train.corpus.records import MAX_RECORD_BYTES, RecordBlock, Rejected, make_block, too_long
from kexue_train.errors import CorpusError

_ROWS = 4096


def read_parquet(path: Path, text_key: str, block_bytes: int) -> Iterator[RecordBlock]:
    """Yield the records of a Parquet file; positions are row numbers."""
    with _explain_damage(path, "Parquet"), pq.ParquetFile(path, pre_buffer=False, memory_map=False) as file:
        steps = _find_column(path, file.schema_arrow, text_key)
        batches = file.iter_batches(batch_size=_ROWS, columns=[".".join(steps)], use_threads=False)
        yield from _read_batches(batches, steps, text_key, block_bytes)


def read_arrow(path: Path, text_key: str, block_bytes: int) -> Iterator[RecordBlock]:
    """Yield the records of an Arrow IPC stream or file; positions are row numbers."""
    with _explain_damage(path, "Arrow IPC"), path.open("rb") as raw:
        if raw.read(6) == b"ARROW1":
            with pa.ipc.open_file(pa.PythonFile(raw, "r")) as file:
                steps = _find_column(path, file.schema, text_key)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
                yield from _read_batches(batches, steps, text_key, block_bytes)
            return
        size = raw.seek(0, 2)
        raw.seek(max(size - 4, 0))
        if raw.read() != b"\0\0\0\0":  # Arrow takes a stream cut between two batches for a whole one
            raise pa.ArrowInvalid("its end mark is missing, so it is cut off")
        raw.seek(0)
        with pa.ipc.open_stream(raw) as stream:
            steps = _find_column(path, stream.schema, text_key)
            yield from _read_batches(iter(stream), steps, text_key, block_bytes)


@contextmanager
def _explain_damage(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise CorpusError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
        first, _, _ = str(error).partition("\n")
        raise CorpusError(
            f"{path}: is damaged or no {kind} file of {path.stat().st_size} bytes ({first}); "
            "fetch or make the file again, or leave it out"
        ) from None


def _find_column(path: Path, schema: pa.Schema, key: str) -> list[str]:
    """The way to the text column; several steps go into structs."""
    steps, kind = [key], None
    if key in schema.names:
        kind = schema.field(key).type
    elif key.split(".")[0] in schema.names:
        steps = key.split(".")
        kind = schema.field(steps[0]).type
        for step in steps[1:]:
            index = kind.get_field_index(step) if pa.types.is_struct(kind) else -1
            kind = kind.field(index).type if index >= 0 else None
            if kind is None:
                break
    if kind is None:
        columns = ", ".join(f"'{name}'" for name in schema.names) or "none"
        raise CorpusError(f"{path}: has no column '{key}'; its columns: {columns}; name one with --text-key")
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise CorpusError(f"{path}: column '{key}' holds {kind}, expected string; name a text column with --text-key")
    return steps


def _read_batches(
    batches: Iterator[pa.RecordBatch], steps: list[str], text_key: str, block_bytes: int
) -> Iterator[RecordBlock]:
    row = 0
    for batch in batches:
        column = batch.column(steps[0])
        for step in steps[1:]:
            column = pc.struct_field(column, step)
        for texts in _pieces(column, block_bytes):
            yield _make_block(row, texts, text_key)
            row += len(texts)


def _pieces(column: pa.Array, block_bytes: int) -> Iterator[pa.LargeStringArray]:
    """The column as large strings, in slices of about ``block_bytes``."""
    num_rows = min(len(column), _ROWS)
    for start in range(0, len(column), num_rows or 1):
        texts = column.slice(start, num_rows)
        # Strings that are not UTF-8 pass this cast and are found later, row by row.
        texts = (
            texts.cast(pa.large_binary()).view(pa.large_string())
            if not _is_dictionary(texts)
            else texts.cast(pa.large_string())
        )
        ends = np.cumsum(pc.fill_null(pc.binary_length(texts), 0).to_numpy())
        edges = [0, *(np.flatnonzero(np.diff(ends // block_bytes)) + 1).tolist(), len(texts)]
        for low, high in itertools.pairwise(edges):
            yield texts.slice(low, high - low)


def _is_dictionary(column: pa.Array) -> bool:
    return bool(pa.types.is_dictionary(column.type))


def _make_block(row: int, texts: pa.LargeStringArray, text_key: str) -> RecordBlock:
    positions = np.arange(row, row + len(texts), dtype=np.uint64)
    is_null = texts.is_null().to_numpy(zero_copy_only=False)
    rejected = [
        Rejected(row + i, f"'{text_key}' is not a string", "found null", b"null")
        for i in np.flatnonzero(is_null).tolist()
    ]
    lengths = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    is_long = lengths > MAX_RECORD_BYTES
    for i in np.flatnonzero(is_long).tolist():
        rejected.append(too_long(row + i, int(lengths[i]), texts.slice(i, 1).view(pa.large_binary())[0].as_py()))
    good = ~(is_null | is_long)
    if not good.all():
        positions, texts = positions[good], texts.filter(pa.array(good))
    return make_block(positions, pc.drop_null(texts), rejected)
