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
        self._rest = pa.array([], pa.large_string())

    def cut(self, texts: pa.LargeStringArray) -> Iterator[pa.RecordBatch]:
        """Yield the batches that ``texts`` completes; a batch ends with the row that reaches a limit."""
        texts = pa.concat_arrays([self._rest, texts]) if len(self._rest) else texts
        ends = np.cumsum(pc.binary_length(texts).to_numpy())
        start = 0
        while start < len(texts):
            before = ends[start - 1] if start else 0
            stop = min(start + _BATCH_ROWS, int(np.searchsorted(ends, before + _BATCH_BYTES)) + 1)
            if stop > len(texts):
                break
            yield _to_batch(texts.slice(start, stop - start))
            start = stop
        # Taken, not sliced: a slice would hold on to the memory of the whole.
        self._rest = texts.take(pa.array(np.arange(start, len(texts))))

    def finish(self) -> Iterator[pa.RecordBatch]:
        """Yield what is left."""
        if len(self._rest):
            yield _to_batch(self._rest)
            self._rest = self._rest.slice(0, 0)


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


def _to_batch(texts: pa.LargeStringArray) -> pa.RecordBatch:
    return pa.record_batch([texts.cast(pa.string())], schema=TEXT_SCHEMA)
