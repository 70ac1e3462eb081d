"""Finds JSON objects that have a key twice: of these a parser takes the last value, and the other one would be lost."""

from __future__ import annotations

import json
import re

from kexue_train.corpus.records import ReadOptions, Rejected, reject


class DoubledKeys:
    """Looks for the keys of ``ReadOptions`` in the JSON text of records; nearly every record has them once."""

    def __init__(self, options: ReadOptions) -> None:
        keys = (*options.text_keys, *options.keep)
        self._parts = {part for key in keys for part in (key, *key.split("."))}
        self._last = {name.encode() for key in keys for name in _spellings(key.rpartition(".")[2]) | _spellings(key)}
        self._colons = re.compile(rb"(" + b"|".join(map(re.escape, sorted(self._last))) + rb")\s*:")
        self.quoted = json.dumps(options.text_keys[0], ensure_ascii=False).encode()
        """The first text key as it stands in JSON, before its colon."""

    def name_in(self, data: bytes) -> str | None:
        """Return a key that a record has twice in one object."""
        if sum(map(data.count, self._last)) < 2:
            return None
        spelt = self._colons.findall(data)
        if len(set(spelt)) == len(spelt):
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


def _spellings(name: str) -> set[str]:
    return {json.dumps(name), json.dumps(name, ensure_ascii=False)}
