"""Takes the text and the kept values out of records, whatever their format, and gathers them into blocks."""

from __future__ import annotations

import datetime
import decimal
import json
import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from kexue_train.corpus.records import ReadOptions, RecordBlock, Rejected, make_block, reject
from kexue_train.corpus.unread_keys import KeyWatch
from kexue_train.foundation.arrow_arrays import to_binary
from kexue_train.foundation.errors import CorpusError

logger = logging.getLogger(__name__)


_WRITTEN_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID)
_SHOWN = 20
"""How many names a message lists."""
_RECORD_BYTES = 100  # what a record weighs beside its text, so that a block of short ones stays small too


UNKEPT = "value that cannot be kept"
"""The reason of a record with such a value."""


class Refusal(NamedTuple):
    """Why a record has no text; see ``Rejected``."""

    reason: str
    detail: str


class Missing:
    """Stands for the value of a key that is not there."""


def find_value(record: object, key: str) -> object:
    """Return the value of ``key``, or ``Missing``; dots go into objects unless there is a key with that very name."""
    if isinstance(record, dict) and key in record:
        return record[key]
    if "." not in key:
        return Missing
    for part in key.split("."):
        if not isinstance(record, dict) or part not in record:
            return Missing
        record = record[part]
    return record


def pick_text(record: object, keys: tuple[str, ...]) -> str | Refusal:
    """Return the text of a record: the values of ``keys``, joined by newlines; all but one may be missing or null."""
    if len(keys) == 1 and isinstance(record, dict) and isinstance(text := record.get(keys[0]), str):  # the usual record
        return text
    if not isinstance(record, dict):
        return Refusal("not a JSON object", f"found {_json_name(record)}")
    if len(keys) == 1:
        value = find_value(record, keys[0])
        return value if isinstance(value, str) else _no_string(record, keys[0], value)
    parts = []
    for key in keys:
        value = find_value(record, key)
        if isinstance(value, str):
            parts.append(value)
        elif value is not Missing and value is not None:
            return _no_string(record, key, value)
    return "\n".join(parts) if parts else no_key_of(keys, list(record))


def no_key_of(keys: tuple[str, ...], found: list[str]) -> Refusal:
    """Return the refusal of a record in which every one of several keys is missing or null."""
    return Refusal(f"none of {_quote(keys)} is there", f"its keys: {_quote(found)}")


def pick_extras(record: object, keep: tuple[str, ...]) -> bytes | Refusal:
    """Return the values of the keys ``keep``, see ``encode_extras``."""
    return encode_extras([find_value(record, key) for key in keep])


def encode_extras(values: list[object]) -> bytes | Refusal:
    """Return a JSON array in UTF-8 of strings and nulls; a value that is not a string is written as its JSON text.

    JSON has no place for some values, such as binary data.
    """
    try:
        texts = [
            None if value is None or value is Missing else value if isinstance(value, str) else _to_json(value)
            for value in values
        ]
    except TypeError as error:
        return Refusal(UNKEPT, str(error))
    return _to_json(texts).encode("utf-8")


def check_columns(path: str, missing: set[str], names: Sequence[str], options: ReadOptions) -> None:
    """Refuse a table without any text column, or with two of a name; a missing column to keep gives a warning.

    Args:
        path: The file, for the message.
        missing: The keys of ``options`` that are no column.
        names: The columns there are.
        options: How the file is read.

    Raises:
        CorpusError: If all of ``options.text_keys`` are missing, or a name of ``options`` is that of several columns.
    """
    for key in (*options.text_keys, *options.keep):
        if names.count(key) > 1:
            raise doubled_column(path, key)
    if missing.issuperset(options.text_keys):
        raise CorpusError(
            f"{path}: has no column {_quote(options.text_keys)}; its columns: {_quote(names)}; name one with --text-key"
        )
    unkept = [key for key in options.keep if key in missing]
    if unkept and not options.rejects_unread:  # else they are the keys of other inputs
        logger.warning("%s: has no column %s to keep; null is kept instead", path, _quote(unkept))


def doubled_column(path: str, name: str) -> CorpusError:
    """Return the refusal of a table in which it is not clear which column is meant."""
    return CorpusError(
        f"{path}: has several columns '{name}'; rename them, or name another one with --text-key or --keep"
    )


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_to_plain)


def _to_plain(value: object) -> str:
    if isinstance(value, _WRITTEN_AS_TEXT):
        return str(value)
    raise TypeError(f"found {_json_name(value)}, which JSON cannot hold")


def _no_string(record: dict[str, object], key: str, value: object) -> Refusal:
    if value is Missing:
        return Refusal(f"no key '{key}'", f"its keys: {_quote(list(record))}")
    return Refusal(f"'{key}' is not a string", f"found {_json_name(value)}")


def _quote(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) or "none"


def _json_name(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


class BlockBuilder:
    """Gathers records in the order of their positions; ``build`` gives them as a block and begins the next."""

    def __init__(self, options: ReadOptions) -> None:
        self._text_keys, self._keep = options.text_keys, options.keep
        self._watch, self._rejects_unread = KeyWatch((*options.text_keys, *options.keep)), options.rejects_unread
        self._begin()

    def _begin(self) -> None:
        self._positions: list[int] = []
        self._texts: list[bytes] = []
        self._extras: list[bytes] = []
        self._rejected: list[Rejected] = []
        self._blank = 0
        self._left_out: Counter[str] = Counter()
        self.num_bytes = 0
        """About how much is held."""

    def add(self, position: int, record: object, raw: bytes | None = None) -> None:
        """Take the text out of ``record``; ``raw`` is how it stands in the file, if that is at hand."""
        text = pick_text(record, self._text_keys)
        if isinstance(text, str) and isinstance(record, dict):
            self._watch.see(record)
            if self._rejects_unread and (unread := self._watch.unread_in(record)):
                text = Refusal("unexpected key", f"{_quote(unread)}, unlike the first records; name it with --keep")
        if isinstance(text, Refusal):
            self._refuse(position, text, record, raw)
            return
        if self._keep:
            extras = pick_extras(record, self._keep)
            if isinstance(extras, Refusal):
                self._refuse(position, extras, record, raw)
                return
            self._extras.append(extras)
            self.num_bytes += len(extras)
        self.add_text(position, text)

    def _refuse(self, position: int, refusal: Refusal, record: object, raw: bytes | None) -> None:
        raw = raw or json.dumps(record, ensure_ascii=False, default=str).encode("utf-8", "replace")
        self.reject(reject(position, *refusal, raw.strip()))

    def add_text(self, position: int, text: str) -> None:
        """Take a text as it is."""
        self.add_utf8(position, text.encode())

    def add_usual(self, position: int, record: Mapping[str, object], text: bytes) -> None:
        """Take ``text``, given in UTF-8, of a record of which nothing else is wanted."""
        self._watch.see(record)
        self.add_utf8(position, text)

    def add_utf8(self, position: int, text: bytes) -> None:
        """Take a text, given in UTF-8, as it is."""
        self._positions.append(position)
        self._texts.append(text)
        self.num_bytes += len(text) + _RECORD_BYTES

    def reject(self, rejected: Rejected) -> None:
        """Take note of a record that cannot be used."""
        self._rejected.append(rejected)
        self.num_bytes += len(rejected.raw) + _RECORD_BYTES

    def add_blank(self) -> None:
        """Count a record that holds nothing."""
        self._blank += 1

    def leave_out(self, reason: str) -> None:
        """Count a record that is no document; see ``RecordBlock.left_out``."""
        self._left_out[reason] += 1

    def build(self) -> RecordBlock:
        """Return the records since the last call."""
        block = make_block(
            np.array(self._positions, np.uint64),
            to_binary(self._texts).view(pa.large_string()),
            self._rejected,
            extras=to_binary(self._extras) if self._keep else None,
            blank=self._blank,
            is_utf8=True,
            unread=self._watch.take(),
        )
        if self._left_out:
            block = replace(block, left_out=self._left_out)
        self._begin()
        return block


def reject_only(rejected: Rejected, options: ReadOptions) -> RecordBlock:
    """Return a block of no text and one refusal."""
    nothing = to_binary([])
    texts = nothing if options.raw else nothing.view(pa.large_string())
    return RecordBlock(np.zeros(0, np.uint64), texts, [rejected], 0, nothing if options.keep else None)


def leave_out_only(reason: str, options: ReadOptions) -> RecordBlock:
    """Return a block of no text and one record that is no document."""
    builder = BlockBuilder(options)
    builder.leave_out(reason)
    return builder.build()


def gather_blocks(steps: Iterator[None], builder: BlockBuilder, block_bytes: int) -> Iterator[RecordBlock]:
    """Yield blocks of about ``block_bytes`` while ``steps`` fills ``builder``.

    What came before an error is yielded before the error is raised: a damaged file gives all its whole records.
    """
    try:
        for _ in steps:
            if builder.num_bytes >= block_bytes:
                yield builder.build()
    except CorpusError:
        yield builder.build()
        raise
    yield builder.build()
