"""Training rows of all shards in one uniformly random order, in two passes and bounded memory, as the texts before.

Every row gets a random key from where it lies alone. ``spill_rows`` (first pass, in the task that makes the rows)
writes the rows of a shard grouped by the shard they go to, which is the upper part of the key; ``gather_rows`` (second
pass) writes a shard in the order of the keys. Held-out rows stay at the start of their shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from kexue_train.foundation.arrow_shards import ShardWriter, format_checksum, read_shard, shard_name
from kexue_train.foundation.artifacts import aside_name, write_atomic
from kexue_train.foundation.counter_rng import Purpose, random_words
from kexue_train.samples.schema import rows_from_bytes, rows_to_bytes
from kexue_train.shuffle.bucket import iter_ordered
from kexue_train.shuffle.keys import bucket_bounds, bucket_of, hash_rows, sum_words
from kexue_train.shuffle.rows import Rows
from kexue_train.shuffle.segments import SpillFile, spilled_buckets
from kexue_train.shuffle.spill import SpillIndex, SpillWriter

_STREAM = 1 << 32  # keeps the keys apart from the words that permute the rows of a shard
_BUFFER_BYTES = 64 * 2**20
_ORDER_BYTES = 256 * 2**20


@dataclass(frozen=True)
class SpilledShard:
    """The rows of one shard, waiting to be mixed."""

    folder: Path
    index: int

    @property
    def heldout(self) -> Path:
        """The held-out rows, in the form of a shard."""
        return self.folder / f"heldout-{self.index:05d}.arrow"

    @property
    def spill(self) -> Path:
        """The training rows."""
        return self.folder / f"rows-{self.index:05d}.spill"

    @property
    def spill_index(self) -> Path:
        """Where in ``spill`` they lie."""
        return self.folder / f"rows-{self.index:05d}.json"

    @property
    def files(self) -> list[Path]:
        """All of it."""
        return [self.heldout, self.spill, self.spill_index]

    def give_back(self) -> None:
        """Free the disk space; that the files are there still says that the shard was done."""
        self.spill.write_bytes(b"")

    def open(self) -> SpillFile:
        """Return the training rows for reading."""
        index = SpillIndex(**json.loads(self.spill_index.read_text(encoding="utf-8")))
        return SpillFile(machine="", boot="", path=str(self.spill), index=index)


class RowSpill:
    """Takes the rows of a shard in order; made by ``spill_rows``."""

    def __init__(self, heldout: ShardWriter, spill: SpillWriter, *, index: int, num_shards: int, seed: int) -> None:
        self._heldout, self._spill = heldout, spill
        self._index, self._num_shards, self._seed = index, num_shards, seed
        self._rows = 0

    def keep(self, batch: pa.RecordBatch) -> None:
        """Append held-out rows."""
        self._heldout.write(batch)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append training rows."""
        positions = np.arange(self._rows, self._rows + batch.num_rows, dtype=np.uint64)
        keys = random_words(self._seed, Purpose.PACKING, _STREAM | self._index, positions)[0]
        self._spill.add(Rows(keys, rows_to_bytes(batch)), bucket_of(keys, self._num_shards))
        self._rows += batch.num_rows


@contextmanager
def spill_rows(shard: SpilledShard, schema: pa.Schema, *, num_shards: int, seed: int) -> Iterator[RowSpill]:
    """Open the files that the rows of ``shard`` go to; whole files get their names, an error leaves no file."""
    aside = aside_name(shard.spill)
    try:
        with ShardWriter(shard.heldout, schema) as heldout:
            with closing(SpillWriter(aside, num_shards, _BUFFER_BYTES, fits_memory=False)) as spill:
                yield RowSpill(heldout, spill, index=shard.index, num_shards=num_shards, seed=seed)
                index = spill.finish()
            _sync(aside)
            write_atomic(shard.spill_index, json.dumps(asdict(index)))
            aside.replace(shard.spill)
    finally:
        aside.unlink(missing_ok=True)


@dataclass(frozen=True)
class GatherRowsTask:
    """What a worker needs to know to write one shard of mixed rows."""

    index: int
    num_shards: int
    scratch: Path
    """Where the spilled rows of all shards lie."""
    folder: Path
    """Where the sample shard goes."""
    schema: pa.Schema

    @property
    def marker(self) -> Path:
        """Exists once the shard is whole; holds the result."""
        return self.scratch / f"mixed-{self.index:05d}.json"

    def finished(self) -> GatheredRows | None:
        """Return the result if the task was done before, else None."""
        if not (self.marker.exists() and (self.folder / shard_name(self.index, self.num_shards)).exists()):
            return None
        return GatheredRows(**json.loads(self.marker.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class GatheredRows:
    """Rows of a shard, held-out ones included, and their checksum."""

    rows: int
    output: str


def gather_rows(task: GatherRowsTask) -> GatheredRows:
    """Write one shard of mixed rows, then the marker.

    Raises:
        ArtifactError: If an intermediate file is damaged.
    """
    shards = [SpilledShard(task.scratch, index) for index in range(task.num_shards)]
    files = [shard.open() for shard in shards]
    checksum = 0
    with ShardWriter(task.folder / shard_name(task.index, task.num_shards), task.schema) as writer:
        for batch in read_shard(shards[task.index].heldout).to_batches():
            writer.write(batch)
            checksum += sum_words(hash_rows(rows_to_bytes(batch)))
        [(bucket, pieces)] = spilled_buckets(files, range(task.index, task.index + 1))
        bounds = bucket_bounds(bucket, task.num_shards)
        for ordered in iter_ordered(
            pieces, bounds, limit_bytes=_ORDER_BYTES, drop_duplicates=False, scratch=task.scratch
        ):
            writer.write(rows_from_bytes(ordered.rows.texts, task.schema))
            checksum += sum_words(hash_rows(ordered.rows.texts))
    result = GatheredRows(writer.rows, format_checksum(checksum))
    write_atomic(task.marker, json.dumps(asdict(result)))
    return result


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
