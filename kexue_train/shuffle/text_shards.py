"""Text shards: what the shuffle writes and the tokenizer and the samples read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.arrow_shards import format_checksum, read_shard, shard_paths
from kexue_train.artifacts import Manifest, verify_artifact
from kexue_train.errors import ArtifactError
from kexue_train.progress import SILENT, Progress
from kexue_train.shuffle.keys import hash_texts, sum_words

TEXT_SCHEMA = pa.schema([("text", pa.string())])

_BATCH_ROWS = 4096
_BATCH_BYTES = 4 * 2**20


class BatchCutter:
    """Cuts a stream of texts into record batches by rows and bytes alone, however the texts arrive."""

    def __init__(self) -> None:
        self._parts: list[pa.LargeStringArray] = []
        self._rows = self._bytes = 0

    def cut(self, texts: pa.LargeStringArray) -> Iterator[pa.RecordBatch]:
        """Yield the batches that ``texts`` completes; a batch ends with the row that reaches a limit."""
        ends = np.cumsum(pc.binary_length(texts).to_numpy())
        start = before = 0
        while start < len(texts):
            limit = before + _BATCH_BYTES - self._bytes
            stop = min(start + _BATCH_ROWS - self._rows, int(np.searchsorted(ends, limit)) + 1)
            is_full = stop <= len(texts)
            stop = min(stop, len(texts))
            # Taken, not sliced: a slice would hold on to the memory of the whole.
            self._parts.append(texts.take(pa.array(np.arange(start, stop))))
            self._rows += stop - start
            self._bytes += int(ends[stop - 1]) - before
            start, before = stop, int(ends[stop - 1])
            if is_full:
                yield from self.finish()

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Yield what is left."""
        if self._parts:
            texts = pa.concat_arrays(self._parts)
            self._parts, self._rows, self._bytes = [], 0, 0
            yield pa.record_batch([texts.cast(pa.string())], schema=TEXT_SCHEMA)


def iter_texts(folder: Path) -> Iterator[str]:
    """Yield the texts of a folder of text shards in their order.

    Raises:
        ArtifactError: If the folder holds no shard, or one is damaged.
    """
    for path in shard_paths(folder):
        for batch in read_shard(path).to_batches():
            yield from batch.column("text").to_pylist()


def verify_text_shards(folder: Path, progress: Progress = SILENT) -> Manifest:
    """Check every file against the manifest, then every row against its proof: as many rows, the same sum of hashes.

    Raises:
        ArtifactError: Names what differs.
    """
    manifest = verify_artifact(folder, progress)
    rows = checksum = 0
    for path in shard_paths(folder):
        for batch in read_shard(path).to_batches():
            rows += batch.num_rows
            checksum += sum_words(hash_texts(batch.column("text")))
    proof = manifest.rows_checksum
    if proof is None or rows != manifest.rows or format_checksum(checksum) != proof.output:
        raise ArtifactError(
            f"{folder}: holds {rows} rows with checksum {format_checksum(checksum)}, the manifest says "
            f"{manifest.rows} rows with {proof.output if proof else 'no checksum'}; run its stage again"
        )
    return manifest
