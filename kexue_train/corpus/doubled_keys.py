"""Finds JSON objects that have a key twice: of these a parser takes the last value, and the other one would be lost."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence

from kexue_train.corpus.records import ReadOptions, Rejected, reject


class DoubledKeys:
    """Looks for the keys of ``ReadOptions`` in the JSON text of records.

    Nearly every record has them once, which a search for the quoted key and its colon shows without parsing.
    """

    def __init__(self, options: ReadOptions) -> None:
        keys = (*options.text_keys, *options.keep)
        self._parts = {part for key in keys for part in (key, *key.split("."))}
        self._sought = [_spellings(name) for key in keys for name in {key, key.rpartition(".")[2]}]
        self._has_one = len(self._sought) == 1

    def are_in(self, lines: bytes, num_texts: int) -> bool:
        """Return whether a record of some JSON Lines has a key twice; ``num_texts`` of the records have a text."""
        if self._has_one and _count(lines, self._sought[0]) == num_texts:  # each that has a text has the key
            return False
        return any(self.name_in(line) for line in io.BytesIO(lines))

    def name_in(self, data: bytes) -> str | None:
        """Return a key that a record has twice in one object."""
        if all(_count(data, spellings) < 2 for spellings in self._sought):
            return None
        found: list[str] = []

        def look(pairs: list[tuple[str, object]]) -> None:
            names = [name for name, _ in pairs]
            found.extend(name for name in self._parts.intersection(names) if names.count(name) > 1)

        try:
            json.loads(data, object_pairs_hook=look)
        except (ValueError, RecursionError):  # which the parser of the records tells better
            return None
        return found[0] if found else None


def doubled_key(position: int, name: str, data: bytes) -> Rejected:
    """Return the refusal of a record that has a key twice."""
    return reject(position, f"key '{name}' twice in an object", "it is not clear which value is meant", data.strip())


def _spellings(name: str) -> list[bytes]:
    return [spelling.encode() + b":" for spelling in {json.dumps(name), json.dumps(name, ensure_ascii=False)}]


def _count(data: bytes, spellings: Sequence[bytes]) -> int:
    return sum(data.count(spelling) for spelling in spellings)
