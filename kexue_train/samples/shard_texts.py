"""The texts of text shards: all of one shard, or the first of all shards, which are a uniform sample of the corpus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.foundation.arrow_shards import format_checksum, read_shard, shard_paths
from kexue_train.foundation.errors import ArtifactError
from kexue_train.shuffle.config import SOURCE_COLUMN
from kexue_train.shuffle.keys import Words, hash_rows, sum_words

_BATCH_CHARS = 1_000_000


def iter_text_blocks(shards: Path, num_bytes: int, *, skip_bytes: int = 0, block_bytes: int = 1 << 20) -> Iterator[str]:
    """Yield documents of ``shards`` from the first that begins after ``skip_bytes``, in blocks joined by newlines.

    Stops after ``num_bytes`` of text; a document is never cut.

    Raises:
        ArtifactError: If a shard cannot be read or has no column ``text``.
    """
    seen = 0
    block: list[str] = []
    block_size = 0
    for path in shard_paths(shards):
        for value in _texts(path):
            size = value.as_buffer().size
            is_skipped = seen < skip_bytes
            seen += size
            if is_skipped:
                continue
            block.append(value.as_py())
            block_size += size
            if block_size >= block_bytes or seen >= skip_bytes + num_bytes:
                yield "\n".join(block)
                block, block_size = [], 0
            if seen >= skip_bytes + num_bytes:
                return
    if block:
        yield "\n".join(block)


def text_bytes(shards: Path, limit: int) -> int:
    """Count the UTF-8 bytes of text in ``shards``, until they exceed ``limit``."""
    total = 0
    for path in shard_paths(shards):
        total += pc.sum(pc.binary_length(_texts(path))).as_py() or 0
        if total > limit:
            break
    return total


def _texts(path: Path) -> Any:
    table = read_shard(path)
    if "text" not in table.column_names:
        raise ArtifactError(f"{path}: has columns {table.column_names}, no 'text'; give a folder of text shards")
    return table.column("text")


def text_column(path: Path) -> pa.ChunkedArray:
    """Return the texts, over the mapped file.

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


def source_numbers(path: Path, names: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the place in ``names`` of each document's source, shape (documents,).

    Raises:
        ArtifactError: If a document has another source, or none.
    """
    table = read_shard(path)
    has_column = SOURCE_COLUMN in table.column_names
    found = pc.index_in(table.column(SOURCE_COLUMN), pa.array(names, pa.string())) if has_column else None
    if found is None or found.null_count:
        raise ArtifactError(
            f"{path}: needs a column '{SOURCE_COLUMN}' with one of {', '.join(names)} for each document, as the "
            "manifest says; delete the folder and run its stage again"
        )
    numbers: npt.NDArray[np.int64] = found.to_numpy().astype(np.int64)
    return numbers


def texts_checksum(texts: pa.ChunkedArray) -> str:
    """Return the order-independent checksum of the texts, as in the manifest of their shards."""
    return format_checksum(sum(sum_words(hash_rows(chunk.cast(pa.large_binary()))) for chunk in texts.chunks))


def text_hashes(texts: pa.ChunkedArray) -> Words:
    """Return the hash of each text: shape (2, n)."""
    parts = [hash_rows(chunk.cast(pa.large_binary())) for chunk in texts.chunks]
    return np.concatenate([np.zeros((2, 0), np.uint64), *parts], axis=1)


def are_among(hashes: Words, chosen: Words) -> npt.NDArray[np.bool_]:
    """Return which of n hashes are also among the ``chosen`` ones: shape (n,)."""
    known = set(zip(*chosen.tolist(), strict=True))
    found: npt.NDArray[np.bool_] = np.isin(hashes[0], chosen[0])
    for place in np.flatnonzero(found).tolist():
        found[place] = (int(hashes[0, place]), int(hashes[1, place])) in known
    return found


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
