"""In which scripts and languages the shuffled documents are written: of the first ones, which are a uniform sample."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue_train.corpus.languages import open_identifier
from kexue_train.corpus.scripts import count_scripts
from kexue_train.shuffle.outputs import iter_shard

SAMPLE_BYTES = 4 * 2**20
"""So much text is looked at, in the order of the shards."""
_MOST_OF_A_DOCUMENT = 2**18
"""Bytes of a document that are looked at, so that a few long ones are not all that is."""
_MIN_SHARE = 0.0005


def measure_writing(
    shards: Iterable[Path], output: str, keep: Sequence[str], sources: Sequence[str], *, with_languages: bool
) -> dict[str, Any]:
    """Return under ``scripts`` the shares of letters by script, under ``languages`` those of text by language.

    Of each source of a mixture also its own. Nothing for CSV, whose reader would hold a shard whole.

    Args:
        shards: The shards in their order.
        output: Their format.
        keep: Their columns beside the text; with ``sources`` the last one is that of the sources.
        sources: The sources of a mixture.
        with_languages: Whether to guess the language of each document.

    Raises:
        ResourceError: If what guesses languages is not installed.
    """
    if output == "csv":
        return {}
    name, identify = open_identifier() if with_languages else ("", lambda _: "")
    scripts, languages = _Shares(sources), _Shares(sources)
    number = num_bytes = 0
    for data, source in _documents(shards, output, keep):
        data = data[:_MOST_OF_A_DOCUMENT]
        number, num_bytes = number + 1, num_bytes + len(data)
        text = data.decode("utf-8", "ignore")  # a last character may be cut
        scripts.add(count_scripts(text), source)
        languages.add({identify(text): len(data)}, source)
        if num_bytes >= SAMPLE_BYTES:
            break
    facts = {"documents": number, "text_bytes": num_bytes}
    found = {"scripts": facts | scripts.describe()}
    return found | ({"languages": {"identifier": name} | facts | languages.describe()} if with_languages else {})


class _Shares:
    """Amounts by name, of all documents and by source."""

    def __init__(self, sources: Sequence[str]) -> None:
        self._all: Counter[str] = Counter()
        self._by_source: dict[str, Counter[str]] = {name: Counter() for name in sources}

    def add(self, amounts: Mapping[str, int], source: str) -> None:
        self._all.update(amounts)
        if source in self._by_source:
            self._by_source[source].update(amounts)

    def describe(self) -> dict[str, Any]:
        own = {name: _share(amounts) for name, amounts in self._by_source.items()}
        return {"shares": _share(self._all), **({"by_source": own} if own else {})}


def _documents(shards: Iterable[Path], output: str, keep: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    for path in shards:
        for texts, extras in iter_shard(path, output, keep):
            values = [""] * len(texts) if extras is None else (json.loads(row)[-1] or "" for row in extras.to_pylist())
            yield from zip(texts.to_pylist(), values, strict=True)


def _share(amounts: Counter[str]) -> dict[str, float]:
    """Return the shares, largest first; those of hardly anything are left out."""
    total = amounts.total()
    shares = {name: amounts[name] / total for name in sorted(amounts, key=lambda name: (-amounts[name], name))}
    return {name: round(share, 6) for name, share in shares.items() if share >= _MIN_SHARE}
