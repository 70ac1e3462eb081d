"""The second pass: collects the rows of one shard from all spill files, puts them in order and writes the shard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.arrow_arrays import values_bytes
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.runtime import keep_freed_memory_of
from kexue_train.shuffle.bucket import Ordered, Pieces, iter_ordered
from kexue_train.shuffle.by_source import SourceCounts, SourceTally
from kexue_train.shuffle.keys import bucket_bounds, hash_rows, sum_words
from kexue_train.shuffle.mixing import OrderSums
from kexue_train.shuffle.near.leaving_out import LeaveOut, Shown
from kexue_train.shuffle.outputs import ShardForm, ShardOutput, open_shard, shard_file_name
from kexue_train.shuffle.rows import Rows
from kexue_train.shuffle.segments import SpillFile, SpillSegment, group_by_bucket, read_spill_list, spilled_buckets
from kexue_train.shuffle.weights import Draw

_MOD = 1 << 128


@dataclass(frozen=True, slots=True)
class GatherTask:
    """What one call of ``gather`` needs."""

    shard: int
    num_shards: int
    buckets_per_shard: int
    bucket_bytes: int
    """Memory for the rows held at a time."""
    form: ShardForm
    drop_duplicates: bool
    near_folder: str | None
    """Where it says which near duplicates are left out; None: none are."""
    keep_dropped: bool
    """Keep the near duplicates that are left out."""
    draws: tuple[Draw, ...]
    """For each ticket which rows stay."""
    task_sources: tuple[int, ...]
    """For each scatter task the number of its source in a mixture; empty where there is none."""
    folder: str
    """Where the list of spill files and the done markers lie."""
    out_folder: str
    max_rows: int | None
    """How many rows the shard may have; the later ones are counted as not drawn. None: all."""
    is_durable: bool
    """Whether the shard is the result; else it is read at once and deleted, and need not reach the disk."""
    free_spills: bool
    """Give the disk space of what was consumed back, as soon as the shard is on disk."""


@dataclass(slots=True)
class GatherResult:
    """What a gather task did; also the done marker of its shard."""

    rows: int = 0
    text_bytes: int = 0
    checksum: int = 0
    duplicates: int = 0
    duplicates_checksum: int = 0
    sampled_out: int = 0
    """Rows whose ticket was not drawn, or that are beyond the first ones asked for."""
    sampled_out_checksum: int = 0
    near_duplicates: int = 0
    """Rows left out since they are near-duplicates of another document."""
    near_duplicates_checksum: int = 0
    shown: list[Shown] = field(default_factory=list)
    """Documents of the largest clusters of near duplicates."""
    file_bytes: int = 0
    file_checksum: str = ""
    order: OrderSums = field(default_factory=OrderSums)
    sources: list[SourceCounts] = field(default_factory=list)
    """The same by number of the source in a mixture."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        values = asdict(self)
        return json.dumps(values | {name: f"{values[name]:032x}" for name in values if name in _SUMS})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        values: dict[str, Any] = json.loads(text)
        values |= {name: int(values[name], 16) for name in _SUMS if name in values}
        shown = [Shown(**entry) for entry in values.get("shown", [])]
        sources = [SourceCounts(**entry) for entry in values.get("sources", [])]
        return cls(**values | {"order": OrderSums(**values["order"]), "shown": shown, "sources": sources})


_SUMS = ("checksum", "duplicates_checksum", "sampled_out_checksum", "near_duplicates_checksum")


def shard_marker_path(folder: Path, shard: int) -> Path:
    """Return the ``GatherResult`` of a shard; exists once the shard is done."""
    return folder / f"shard-{shard:06d}.json"


def gather(task: GatherTask, fetched: Sequence[Sequence[SpillSegment]] | None = None) -> GatherResult:
    """Write the shard of ``task``; ``fetched`` holds its buckets if their spill files cannot be opened here."""
    keep_freed_memory_of(gather)
    folder = Path(task.folder)
    files = read_spill_list(task.folder)
    first = task.shard * task.buckets_per_shard
    buckets = range(first, first + task.buckets_per_shard)
    path = Path(task.out_folder, shard_file_name(task.form.output, task.shard, task.num_shards))
    shard = _Shard(task)
    with open_shard(path, task.form, durable=task.is_durable) as (output, file), shard.leaving_out():
        for bucket, pieces in _pieces(files, fetched, buckets):
            bounds = bucket_bounds(bucket, task.num_shards * task.buckets_per_shard)
            for ordered in iter_ordered(
                pieces,
                bounds,
                limit_bytes=task.bucket_bytes,
                drop_duplicates=task.drop_duplicates,
                scratch=folder,
            ):
                shard.take(ordered, output)
    result = shard.result
    result.file_bytes, result.file_checksum = file.bytes, file.checksum
    if task.is_durable:
        write_atomic(shard_marker_path(folder, task.shard), result.to_json())
    if task.free_spills:
        _free(files, buckets)
    return result


def _pieces(
    files: Sequence[SpillFile], fetched: Sequence[Sequence[SpillSegment]] | None, buckets: range
) -> Iterator[tuple[int, Pieces]]:
    if fetched is None:
        yield from spilled_buckets(files, buckets)
    else:
        yield from sorted(group_by_bucket(files, fetched).items())


def _free(files: Sequence[SpillFile], buckets: range) -> None:
    for file in files:
        with file.open() as reader:
            reader.free(buckets.start, buckets.stop)


class _Shard:
    """Passes rows on to the shard, counts them, and skips those whose ticket is not drawn."""

    def __init__(self, task: GatherTask) -> None:
        self.result = GatherResult()
        self._tally = SourceTally(task.task_sources)
        self.result.sources = self._tally.counts
        self._draws = {draw.ticket: draw for draw in task.draws}
        self._seen = dict.fromkeys(self._draws, 0)
        self._max_rows = task.max_rows
        self._near = LeaveOut(Path(task.near_folder), task.shard, keep=task.keep_dropped) if task.near_folder else None

    @contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Keep what is left out, and check at the end that nothing is missing of what should be."""
        with self._near or nullcontext():
            yield
        if self._near:
            self.result.shown = self._near.shown

    def take(self, ordered: Ordered, output: ShardOutput) -> None:
        result = self.result
        result.duplicates += len(ordered.duplicates)
        result.duplicates_checksum = _add(result.duplicates_checksum, ordered.duplicates)
        self._tally.add("duplicates", ordered.duplicates)
        rows = self._cut(self._draw(self._leave_out(ordered.rows)))
        if not len(rows):
            return
        result.order.add(rows.origins, result.rows)
        result.rows += len(rows)
        result.text_bytes += values_bytes(rows.texts)
        result.checksum = _add(result.checksum, rows)
        self._tally.add("rows", rows)
        output.write(rows.texts, rows.extras)

    def _leave_out(self, rows: Rows) -> Rows:
        if self._near is None or not len(rows):
            return rows
        stays = self._near.judge(rows.texts)
        if stays.all():
            return rows
        out = rows.take(np.flatnonzero(~stays))
        self.result.near_duplicates += len(out)
        self._tally.add("near_duplicates", out)
        self.result.near_duplicates_checksum = _add(self.result.near_duplicates_checksum, out)
        return rows.take(np.flatnonzero(stays))

    def _draw(self, rows: Rows) -> Rows:
        if rows.tickets is None or not rows.tickets.any():
            return rows
        stays = np.ones(len(rows), bool)
        for ticket, draw in self._draws.items():
            indices = np.flatnonzero(rows.tickets == ticket)
            stays[indices] = draw.stays(self._seen[ticket], len(indices))
            self._seen[ticket] += len(indices)
        return self._select(rows, stays)

    def _cut(self, rows: Rows) -> Rows:
        if self._max_rows is None or self.result.rows + len(rows) <= self._max_rows:
            return rows
        return self._select(rows, np.arange(len(rows)) < self._max_rows - self.result.rows)

    def _select(self, rows: Rows, stays: npt.NDArray[np.bool_]) -> Rows:
        out = rows.take(np.flatnonzero(~stays))
        self.result.sampled_out += len(out)
        self._tally.add("sampled_out", out)
        self.result.sampled_out_checksum = _add(self.result.sampled_out_checksum, out)
        return rows.take(np.flatnonzero(stays))


def _add(checksum: int, rows: Rows) -> int:
    if not len(rows):
        return checksum
    return (checksum + sum_words(hash_rows(rows.texts, rows.extras))) % _MOD
