"""Reads text shards as plainly as can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kexue_train.foundation.arrow_shards import read_shard, shard_paths


def iter_texts(folder: Path) -> Iterator[str]:
    """Yield the texts of a folder of text shards in their order."""
    for path in shard_paths(folder):
        yield from read_shard(path).column("text").to_pylist()
