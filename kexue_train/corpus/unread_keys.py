"""Which keys or columns of the inputs are not read: a loss that is told, and what ``keep_all`` keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

MAX_KEYS = 1000
"""So many of an input are enough to tell: records may have keys without end, each its own."""
_Tree = Mapping[str, Any]
"""Key -> the tree of those inside it that are read; an empty one: all of it is."""


class KeyWatch:
    """Remembers the keys of records that are not read."""

    def __init__(self, read: Iterable[str]) -> None:
        """``read`` are the keys that are; dots go into objects, unless a key has that very name."""
        self._read = _tree_of(read)
        self._seen: set[str] = set()
        goes_deep = any(self._read.values())
        self.see: Callable[[Mapping[str, object]], None] = self._see_inside if goes_deep else self._seen.update
        """Take note of the keys of a record; called for each, so it does no more than it has to."""

    def _see_inside(self, record: Mapping[str, object]) -> None:
        self._seen.update(_iter_unread(record, self._read))

    def unread_in(self, record: Mapping[str, object]) -> list[str]:
        """Return the keys of one record that are not read."""
        return list(_iter_unread(record, self._read))

    def take(self) -> frozenset[str]:
        """Return the keys since the last call that are not read, those in objects with dots."""
        unread = frozenset(self._seen - self._read.keys())
        self._seen.clear()
        return unread


def unread_columns(schema: pa.Schema, read: Iterable[str]) -> frozenset[str]:
    """Return the columns, and the fields of structs, that are not read."""
    return frozenset(_iter_unread({field.name: _fields_of(field.type) for field in schema}, _tree_of(read)))


def _fields_of(kind: pa.DataType) -> dict[str, Any] | None:
    if not pa.types.is_struct(kind):
        return None
    return {kind.field(index).name: _fields_of(kind.field(index).type) for index in range(kind.num_fields)}


def _tree_of(keys: Iterable[str]) -> dict[str, Any]:
    whole = set(keys)
    tree: dict[str, Any] = {key: {} for key in whole}
    for first, *rest in (key.split(".") for key in whole if "." in key):
        if first in whole:
            continue
        place = tree.setdefault(first, {})
        for step in rest:
            place = place.setdefault(step, {})
    return tree


def _iter_unread(record: Mapping[str, object], read: _Tree, prefix: str = "") -> Iterator[str]:
    for key, value in record.items():
        inside = read.get(key)
        if inside is None:
            yield f"{prefix}{key}"
        elif inside and isinstance(value, Mapping):
            yield from _iter_unread(value, inside, f"{prefix}{key}.")
