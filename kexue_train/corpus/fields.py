"""Takes the text and the kept values out of a record, whatever format it comes from."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

from kexue_train.corpus.options import ReadOptions
from kexue_train.foundation.errors import CorpusError

logger = logging.getLogger(__name__)


_SHOWN = 20
"""How many names a message lists."""


class Refusal(NamedTuple):
    """Why a record has no text; see ``Rejected``."""

    reason: str
    detail: str


class Missing:
    """Stands for the value of a key that is not there."""


def find_value(record: object, key: str) -> object:
    """The value of ``key``, or ``Missing``; dots go into objects unless there is a key with that very name."""
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
    """The text of a record: the values of ``keys``, joined by newlines; all but one may be missing or null."""
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
    """The refusal of a record in which every one of several keys is missing or null."""
    return Refusal(f"none of {_quote(keys)} is there", f"its keys: {_quote(found)}")


def pick_extras(record: object, keep: tuple[str, ...]) -> bytes:
    """The values of the keys ``keep``, see ``encode_extras``."""
    return encode_extras([find_value(record, key) for key in keep])


def encode_extras(values: list[object]) -> bytes:
    """A JSON array in UTF-8 of strings and nulls; a value that is no string is written as the JSON text of it."""
    texts = [
        None if value is None or value is Missing else value if isinstance(value, str) else _to_json(value)
        for value in values
    ]
    return _to_json(texts).encode("utf-8")


def check_columns(path: str, missing: set[str], names: Sequence[str], options: ReadOptions) -> None:
    """Refuse a table without any text column; a column to keep may be missing, which is told.

    Args:
        path: The file, for the message.
        missing: The keys of ``options`` that are no column.
        names: The columns there are.
        options: How the file is read.

    Raises:
        CorpusError: If all of ``options.text_keys`` are missing.
    """
    if missing.issuperset(options.text_keys):
        raise CorpusError(
            f"{path}: has no column {_quote(options.text_keys)}; its columns: {_quote(names)}; name one with --text-key"
        )
    if unkept := [key for key in options.keep if key in missing]:
        logger.warning("%s: has no column %s to keep; null is kept instead", path, _quote(unkept))


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)  # default: dates, decimals


def _no_string(record: dict[str, object], key: str, value: object) -> Refusal:
    if value is Missing:
        return Refusal(f"no key '{key}'", f"its keys: {_quote(list(record))}")
    return Refusal(f"'{key}' is not a string", f"found {_json_name(value)}")


def _quote(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) or "none"


def _json_name(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
