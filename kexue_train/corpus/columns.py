"""Takes texts and kept values out of record batches of Arrow columns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.corpus.builder import UNKEPT, Refusal, check_columns, doubled_column, encode_extras, no_key_of
from kexue_train.corpus.records import (
    MAX_RECORD_BYTES,
    RAW_LIMIT_BYTES,
    ReadOptions,
    RecordBlock,
    Rejected,
    make_block,
    reject,
    too_long,
)
from kexue_train.corpus.unread_keys import unread_columns
from kexue_train.foundation.errors import CorpusError

BATCH_ROWS = 4096

_BINARY = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}
_NO_VALUE = (OverflowError, ValueError, KeyError)
"""What Arrow raises for dates beyond those of Python, unknown time zones, and structs with two fields of a name."""
_Steps = tuple[str, ...]
"""The way to a column; several steps go into structs."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where the texts and the kept values of a file are."""

    texts: tuple[_Steps, ...]
    """Those of ``ReadOptions.text_keys`` that are there, at least one."""
    kept: tuple[_Steps | None, ...]
    """One for each of ``ReadOptions.keep``; None if it is not there."""
    unread: frozenset[str]
    """All other columns."""
    options: ReadOptions

    @property
    def needed(self) -> list[_Steps]:
        """Each column once."""
        return list(dict.fromkeys([*self.texts, *filter(None, self.kept)]))


def find_columns(path: str, schema: pa.Schema, options: ReadOptions) -> Columns:
    """Return where the columns of ``options`` are.

    Raises:
        CorpusError: If no text column is there, or one of the columns is of a type that does not fit.
    """
    found = {key: _find(path, schema, key) for key in (*options.text_keys, *options.keep)}
    check_columns(path, {key for key, column in found.items() if column is None}, schema.names, options)
    texts = {key: found[key] for key in options.text_keys if found[key]}
    for key, (_, kind) in ((key, column) for key, column in texts.items() if column):
        if not (_is_string(kind) or pa.types.is_null(kind)):  # every row of the latter is rejected, as a null is
            raise CorpusError(
                f"{path}: column '{key}' holds {kind}, expected string; name a text column with --text-key"
            )
    for key in options.keep:
        column = found[key]
        if column and _has_binary(column[1]):
            raise CorpusError(
                f"{path}: column '{key}' holds {column[1]}: binary data, which JSON cannot hold; keep another column"
            )
    steps = {key: column[0] for key, column in found.items() if column}
    kept = tuple(steps.get(key) for key in options.keep)
    unread = unread_columns(schema, (*options.text_keys, *options.keep))
    return Columns(tuple(steps[key] for key in texts), kept, unread, options)


def read_batch(batch: pa.RecordBatch, columns: Columns, row: int) -> Iterator[RecordBlock]:
    """Yield the records of a batch, whose first one is row ``row`` of the file.

    The batch may be larger than memory, if it lies in a mapped file: a block of it is looked at at a time.

    Raises:
        pyarrow.ArrowInvalid: If the batch is damaged.
    """
    batch.validate()
    found = {steps: _with_checked_dictionary(_follow(batch, steps)) for steps in columns.needed}
    for start in range(0, batch.num_rows, BATCH_ROWS):
        parts = {steps: _checked(column.slice(start, BATCH_ROWS)) for steps, column in found.items()}
        for low, high in _cut(list(parts.values()), columns.options.block_bytes):
            block = {steps: column.slice(low, high - low) for steps, column in parts.items()}
            texts = _join([_to_strings(block[steps]) for steps in columns.texts])
            kept = [block[steps] if steps else None for steps in columns.kept]
            yield _make_block(row + start + low, texts, kept, columns)


def _find(path: str, schema: pa.Schema, key: str) -> tuple[_Steps, pa.DataType] | None:
    if schema.names.count(key) > 1:
        raise doubled_column(path, key)
    if key in schema.names:
        return (key,), schema.field(key).type
    steps = tuple(key.split("."))
    if steps[0] not in schema.names:
        return None
    kind = pa.struct(schema)
    for step in steps:
        fields = [field for field in kind if field.name == step] if pa.types.is_struct(kind) else []
        if len(fields) > 1:
            raise doubled_column(path, key)
        if not fields:
            return None
        kind = fields[0].type
    return steps, kind


def _is_string(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _has_binary(kind: pa.DataType) -> bool:
    """Return whether values of the type are or hold binary data."""
    if isinstance(kind, pa.BaseExtensionType):
        return not isinstance(kind, pa.UuidType) and _has_binary(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _has_binary(kind.value_type)
    return _is_binary(kind) or any(_has_binary(kind.field(i).type) for i in range(kind.num_fields))


def _follow(batch: pa.RecordBatch, steps: _Steps) -> Any:
    column = functools.reduce(pc.struct_field, steps[1:], batch.column(steps[0]))
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def _with_checked_dictionary(column: pa.Array) -> pa.Array:
    """Return the column with the dictionary checked, which is one for all rows; see ``_checked``."""
    if not pa.types.is_dictionary(column.type):
        return column
    return pa.DictionaryArray.from_arrays(column.indices, _checked(column.dictionary), safe=False)


def _checked(column: pa.Array) -> pa.Array:
    """Return some rows of a column once all they point to is checked: else Arrow would read whatever lies there.

    Strings come as binary, since those that are not UTF-8 are found later, row by row.
    """
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, column.dictionary)  # looks at every index
    if _is_string(column.type):
        column = column.view(_BINARY[column.type])
    column.validate(full=True)
    return column


def _to_strings(column: pa.Array) -> pa.LargeStringArray:
    return column.cast(pa.large_binary()).view(pa.large_string())


def _join(texts: list[pa.LargeStringArray]) -> pa.LargeStringArray:
    """Return the texts of each row joined by newlines, nulls left out; null where all are null."""
    if len(texts) == 1:
        return texts[0]
    kind = pa.large_binary()
    first, *others = [text.view(kind) for text in texts]
    is_null = functools.reduce(pc.and_, [text.is_null() for text in texts])
    first = pc.if_else(is_null, pa.scalar(b"", kind), first)  # Arrow 26 loses a row in which all values are null
    joined = pc.binary_join_element_wise(first, *others, pa.scalar(b"\n", kind), null_handling="skip")
    return pc.if_else(is_null, pa.scalar(None, kind), joined).view(pa.large_string())


def _cut(columns: list[pa.Array], block_bytes: int) -> Iterator[tuple[int, int]]:
    """Return the bounds of slices of about ``block_bytes`` of text, of one row at least."""
    ends = np.cumsum(np.sum([_lengths(column) for column in columns], axis=0, dtype=np.int64))
    return itertools.pairwise([0, *(np.flatnonzero(np.diff(ends // block_bytes)) + 1).tolist(), len(ends)])


def _lengths(column: pa.Array) -> npt.NDArray[np.int64]:
    """Return about the bytes of each value: (n,)."""
    if pa.types.is_dictionary(column.type):
        lengths = _lengths(column.dictionary)
        indices = column.indices.fill_null(0).to_numpy()
        return lengths[indices] if len(lengths) else np.zeros(len(column), np.int64)
    if pa.types.is_binary_view(column.type):  # of 16 bytes, the length first
        views = np.frombuffer(column.buffers()[1], np.int32).reshape(-1, 4)
        return views[column.offset : column.offset + len(column), 0].astype(np.int64)
    if not _is_binary(column.type):  # lists and structs, or a few bytes
        return np.full(len(column), column.nbytes // max(len(column), 1) if pa.types.is_nested(column.type) else 0)
    return np.asarray(pc.fill_null(pc.binary_length(column), 0), np.int64)


def _make_block(row: int, texts: pa.LargeStringArray, kept: list[Any], columns: Columns) -> RecordBlock:
    options = columns.options
    is_bad = texts.is_null().to_numpy(zero_copy_only=False)
    rejected = [_null_text(row + i, options.text_keys) for i in np.flatnonzero(is_bad).tolist()]
    lengths = pc.fill_null(pc.binary_length(texts), 0).to_numpy()
    is_long = lengths > MAX_RECORD_BYTES
    for i in np.flatnonzero(is_long).tolist():
        rejected.append(too_long(row + i, int(lengths[i]), _head(texts, i)))
    is_bad = is_bad | is_long
    extras = None
    if options.keep:
        encoded = _encode_rows(kept, len(texts), options.keep)
        for i, refusal in enumerate(encoded):
            if isinstance(refusal, Refusal) and not is_bad[i]:
                rejected.append(reject(row + i, *refusal, b""))
                is_bad[i] = True
        extras = pa.array([entry if isinstance(entry, bytes) else None for entry in encoded], pa.large_binary())
    positions = np.arange(row, row + len(texts), dtype=np.uint64)
    if is_bad.any():
        good = pa.array(~is_bad)
        positions, texts, extras = positions[~is_bad], texts.filter(good), extras and extras.filter(good)
    return make_block(positions, pc.drop_null(texts), rejected, extras=extras, unread=columns.unread)


def _head(texts: pa.LargeStringArray, i: int) -> bytes:
    return bytes(texts.slice(i, 1).view(pa.large_binary())[0].as_buffer()[:RAW_LIMIT_BYTES])


def _null_text(position: int, keys: tuple[str, ...]) -> Rejected:
    reason, detail = (f"'{keys[0]}' is not a string", "found null") if len(keys) == 1 else no_key_of(keys, [])
    return reject(position, reason, detail, b"null")


def _encode_rows(kept: list[Any], num_rows: int, names: Sequence[str]) -> list[bytes | Refusal]:
    """Return the extras of each row, or why one of its values cannot be kept."""
    columns = [
        [None] * num_rows if column is None else _to_values(column, name)
        for column, name in zip(kept, names, strict=True)
    ]
    rows = (list(values) for values in zip(*columns, strict=True))
    return [next((value for value in row if isinstance(value, Refusal)), None) or encode_extras(row) for row in rows]


def _to_values(column: pa.Array, name: str) -> list[object]:
    """Return the values as Python has them; a ``Refusal`` in place of one that it cannot have."""
    try:
        return [_decode(value, name) if isinstance(value, bytes) else value for value in column.to_pylist()]
    except _NO_VALUE:
        return [_to_value(value, name) for value in column]


def _to_value(scalar: pa.Scalar[Any], name: str) -> object:
    try:
        value = scalar.as_py()
    except _NO_VALUE as error:
        return Refusal(UNKEPT, f"in column '{name}': {error}")
    return _decode(value, name) if isinstance(value, bytes) else value


def _decode(value: bytes, name: str) -> object:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return Refusal("not UTF-8", f"in the kept column '{name}'")
