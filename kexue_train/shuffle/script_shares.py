"""In which scripts the shuffled documents are written, by source: measured on the first ones, a uniform sample."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kexue_train.corpus.scripts import count_scripts
from kexue_train.shuffle.outputs import iter_shard

SAMPLE_BYTES = 4 * 2**20
"""So much text is looked at, in the order of the shards."""
_MOST_OF_A_DOCUMENT = 2**18
"""Bytes of a document that are looked at, so that a few long ones are not all that is."""
_MIN_SHARE = 0.0005


def measure_scripts(shards: Iterable[Path], output: str, keep: Sequence[str], sources: Sequence[str]) -> dict[str, Any]:
    """Return the shares of letters by script, and of each source of a mixture its own.

    Nothing for CSV, whose reader would hold a shard whole.

    Args:
        shards: The shards in their order.
        output: Their format.
        keep: Their columns beside the text; with ``sources`` the last one is that of the sources.
        sources: The sources of a mixture.
    """
    if output == "csv":
        return {}
    whole: Counter[str] = Counter()
    by_source: dict[str, Counter[str]] = {name: Counter() for name in sources}
    number = num_bytes = 0
    for text, source in _documents(shards, output, keep):
        text = text[:_MOST_OF_A_DOCUMENT]
        number, num_bytes = number + 1, num_bytes + len(text)
        found = count_scripts(text.decode("utf-8", "ignore"))  # a last character may be cut
        whole.update(found)
        if sources:
            by_source[source].update(found)
        if num_bytes >= SAMPLE_BYTES:
            break
    own = {"by_source": {name: _shares(counts) for name, counts in by_source.items()}} if sources else {}
    return {"documents": number, "text_bytes": num_bytes, "shares": _shares(whole), **own}


def _documents(shards: Iterable[Path], output: str, keep: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    for path in shards:
        for texts, extras in iter_shard(path, output, keep):
            values = [""] * len(texts) if extras is None else (json.loads(row)[-1] or "" for row in extras.to_pylist())
            yield from zip(texts.to_pylist(), values, strict=True)


def _shares(counts: Counter[str]) -> dict[str, float]:
    """Return the shares, largest first; scripts of hardly any letter are left out."""
    shares = {name: counts[name] / counts.total() for name in sorted(counts, key=lambda name: (-counts[name], name))}
    return {name: round(share, 6) for name, share in shares.items() if share >= _MIN_SHARE}
