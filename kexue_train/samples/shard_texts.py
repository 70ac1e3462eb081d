"""The texts of one text shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from kexue_train.foundation.arrow_shards import column_bytes, format_checksum, read_shard, sum_hashes, text_hashes
from kexue_train.foundation.errors import ArtifactError

_BATCH_CHARS = 1_000_000


def text_column(path: Path) -> pa.ChunkedArray:
    """The texts, over the mapped file.

    Raises:
        ArtifactError: If the file is damaged or has no texts.
    """
    table = read_shard(path)
    if "text" not in table.column_names or table.column("text").null_count:
        raise ArtifactError(
            f"{path}: needs a column 'text' without nulls, has {table.column_names}; "
            "give a folder made by 'kexue shuffle'"
        )
    return table.column("text")


def texts_checksum(texts: pa.ChunkedArray) -> str:
    """The order-independent checksum of the texts, as in the manifest of their shards."""
    return format_checksum(sum(sum_hashes(text_hashes(column_bytes(chunk))) for chunk in texts.chunks))


def iter_text_batches(texts: Iterable[Any]) -> Iterator[list[str]]:
    """Yield the texts in lists of about a million characters, or of one longer text."""
    batch: list[str] = []
    size = 0
    for value in texts:
        text = value.as_py()
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
