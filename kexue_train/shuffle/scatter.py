"""The first pass: reads some ranges of the inputs and writes their rows, grouped by bucket, to one spill file."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kexue_train.corpus.config import FilterConfig
from kexue_train.corpus.filters import REASONS, drop_reasons
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions, RecordBlock, Rejected
from kexue_train.corpus.unread_keys import MAX_KEYS
from kexue_train.executor import current_machine
from kexue_train.foundation.arrow_arrays import lengths_of, to_arrow, to_binary, to_mask
from kexue_train.foundation.errors import CorpusError, DamagedInputError
from kexue_train.foundation.operating_system import boot_id
from kexue_train.foundation.runtime import keep_freed_memory_of
from kexue_train.shuffle.bucket import repeats
from kexue_train.shuffle.by_source import filters_of, with_source
from kexue_train.shuffle.dropped_samples import join_samples, sample_dropped
from kexue_train.shuffle.head import SmallestKeys
from kexue_train.shuffle.keys import Words, bucket_of, content_keys, hash_rows, position_keys, sum_words
from kexue_train.shuffle.near.config import NearConfig
from kexue_train.shuffle.near.signing import Signer
from kexue_train.shuffle.plan import InputRange
from kexue_train.shuffle.rejected_records import RejectedRecords
from kexue_train.shuffle.replacement import CopyCounter, DrawnRange, repeat_rows
from kexue_train.shuffle.rows import Rows, as_binary
from kexue_train.shuffle.scatter_result import FileCounts, ScatterResult, spill_path
from kexue_train.shuffle.spill import SpillWriter
from kexue_train.shuffle.weights import Sampling

_MOD = 1 << 128


@dataclass(frozen=True, slots=True)
class ScatterTask:
    """What one call of ``scatter`` needs; small, since it travels to a worker."""

    index: int
    ranges: tuple[tuple[InputRange, Source, Sampling], ...]
    options: ReadOptions
    filters: FilterConfig
    seed: int
    num_shards: int
    num_buckets: int
    has_tickets: bool
    """Whether any file of the shuffle is sampled by tickets."""
    drop_duplicates: bool
    near: NearConfig | None
    """How documents are signed for the search of near duplicates; None: they are not."""
    num_band_buckets: int
    fail_on_bad_record: bool
    keep_dropped: bool
    """Keep the documents that a filter drops."""
    header: int
    """So many first lines of every file are no rows."""
    head_count: int | None
    """Only so many rows of the order are wanted; None: all."""
    drawn: tuple[DrawnRange, ...] | None
    """For each range how often its lines are drawn, with replacement; None: each is taken as its weight says."""
    buffer_bytes: int
    fits_memory: bool
    """Whether the page cache has room for all spill files."""
    folder: str
    """Where rejected and dropped records go."""
    spill_folder: str | None
    """A folder on every machine's own disk for the spill file; None: it goes to ``folder``."""


def scatter(task: ScatterTask) -> ScatterResult:
    """Do ``task``. Done again, it leaves a file of another name with the same rows.

    Raises:
        CorpusError: If a file cannot be used, or holds a bad record, and the task is told to fail on one.
    """
    keep_freed_memory_of(scatter)
    # A name of its own, so that a worker that was taken for dead cannot write into the file of its successor.
    name = f"task-{task.index:06d}.{uuid.uuid4().hex[:8]}.spill"
    result = ScatterResult(machine=current_machine(), boot=boot_id(), spill=name)
    path = spill_path(task.folder, task.spill_folder, result)
    path.parent.mkdir(parents=True, exist_ok=True)
    records = RejectedRecords(Path(task.folder), name)
    writer = SpillWriter(path, task.num_buckets, _buffer_bytes(task), fits_memory=task.fits_memory)
    signer = _open_signer(task, name)
    smallest = SmallestKeys.within(task.head_count, task.buffer_bytes // 4)
    unread: set[str] = set()
    try:
        for number, (entry, source, sampling) in enumerate(task.ranges):
            copies = task.drawn[number].copies() if task.drawn else None
            counts = result.files.setdefault(entry.file_index, FileCounts(shard_rows=[0] * task.num_shards))
            for block in _without_header(task, source, entry, counts):
                if len(unread) < MAX_KEYS:
                    unread |= block.unread
                block = with_source(_accept(task, entry.file_index, source, block, counts, records, result), source)
                if not len(block.positions):
                    continue
                if copies:
                    _add_drawn(task, entry.file_index, copies, block, counts, result, writer)
                else:
                    contents = _add(task, entry.file_index, sampling, block, counts, result, writer, smallest)
                    if signer:
                        signer.add(entry.file_index, block.positions, as_binary(block.texts), contents)
        result.index = writer.finish()
        result.signed = signer.finish() if signer else None
        result.unread_keys = sorted(unread)
    except BaseException:
        path.unlink(missing_ok=True)
        if signer:
            signer.discard()
        raise
    finally:
        writer.close()
        if signer:
            signer.close()
    return result


def _buffer_bytes(task: ScatterTask) -> int:
    """Return the memory for rows that wait to be written; bands take a quarter of what there is."""
    return task.buffer_bytes * 3 // 4 if task.near else task.buffer_bytes


def _open_signer(task: ScatterTask, spill: str) -> Signer | None:
    if task.near is None:
        return None
    return Signer(
        task.near,
        seed=task.seed,
        task=task.index,
        num_buckets=task.num_band_buckets,
        buffer_bytes=task.buffer_bytes // 4,
        fits_memory=task.fits_memory,
        folder=Path(task.folder),
        spill=spill,
    )


def _without_header(task: ScatterTask, source: Source, entry: InputRange, counts: FileCounts) -> Iterator[RecordBlock]:
    """Yield the blocks of a range; the lines of the header, at the beginning of a file, are kept in ``counts``."""
    missing = 0 if entry.start else task.header
    header = b""
    for block in _read(task, source, entry):
        taken = min(missing, len(block.positions))
        header += b"".join(line + task.options.line_end for line in block.texts[:taken].to_pylist())
        missing -= taken
        yield RecordBlock(block.positions[taken:], block.texts[taken:], block.rejected) if taken else block
    if missing and entry.end is not None:
        raise CorpusError(
            f"{source.path}: its first {task.header} lines take more than {entry.end} bytes, too much for a header; "
            "correct --header"
        )
    counts.header = counts.header or header.hex()


def _read(task: ScatterTask, source: Source, entry: InputRange) -> Iterator[RecordBlock]:
    """Yield the blocks of a range; where bad records are skipped, damage is one more, after the blocks before it."""
    position = 0
    try:
        for block in read_records(source, task.options, start=entry.start, end=entry.end):
            if len(block.positions):
                position = int(block.positions[-1]) + 1
            yield block
    except DamagedInputError as error:
        if task.fail_on_bad_record:
            raise
        nothing = to_binary([])
        damage = Rejected(position, "the file is damaged from here on", str(error), b"")
        yield RecordBlock(np.zeros(0, np.uint64), nothing, rejected=[damage])


def _accept(
    task: ScatterTask,
    file_index: int,
    source: Source,
    block: RecordBlock,
    counts: FileCounts,
    records: RejectedRecords,
    result: ScatterResult,
) -> RecordBlock:
    """Count and keep aside what is refused or filtered; returns the block without it."""
    counts.blank += block.blank
    counts.dropped.update(block.left_out)
    if block.rejected:
        if task.fail_on_bad_record:
            raise records.refuse(block.rejected[0], source)
        counts.rejected.update(entry.reason for entry in block.rejected)
        records.keep_rejected(block.rejected, source)
    filters = filters_of(source, task.filters)
    if not (filters.is_active and len(block.positions)):
        return block
    reasons = drop_reasons(block.texts, filters)
    if not reasons.any():
        return block
    counts.dropped.update(REASONS[reason - 1] for reason in reasons[reasons > 0].tolist())
    result.dropped_samples = join_samples([result.dropped_samples, sample_dropped(block, reasons, file_index)])
    if task.keep_dropped:
        records.keep_dropped(block, reasons, source)
    keep = to_mask(reasons == 0)
    extras = None if block.extras is None else block.extras.filter(keep)
    return RecordBlock(block.positions[reasons == 0], block.texts.filter(keep), extras=extras)


def _add(
    task: ScatterTask,
    file_index: int,
    sampling: Sampling,
    block: RecordBlock,
    counts: FileCounts,
    result: ScatterResult,
    writer: SpillWriter,
    smallest: SmallestKeys | None,
) -> Words:
    """Give the rows of a block their keys, and hand them to the writer as often as their weight says.

    A file of weight 2.5 has ``whole`` = 2 and a ticket: its rows are offered three times, with copies 0 and 1 that
    stay and copy 2 under the ticket, of which the gather tasks later keep exactly half. Each copy has a key of its
    own, so the copies of a document lie apart.

    Returns the hashes of the texts; where duplicates stay, of the rows.
    """
    texts = as_binary(block.texts)
    hashes = hash_rows(texts, block.extras)
    _count(counts, lengths_of(texts), hashes)
    # The rows' hashes take in the extras; duplicates are texts that are equal, whatever their extras.
    contents = hashes if block.extras is None or not task.drop_duplicates else hash_rows(texts)
    # Duplicates within the block go at once, to save disk; those further apart meet in one bucket, as equal texts have
    # equal keys, and go in the second pass. Either way the first in input order stays.
    fresh = ~repeats(contents) if task.drop_duplicates else None
    for copy in range(sampling.whole + bool(sampling.ticket)):
        if task.drop_duplicates:
            keys = content_keys(task.seed, contents, copy)
        else:
            keys = position_keys(task.seed, file_index, block.positions, copy)
        ticket = sampling.ticket if copy == sampling.whole else 0
        shards = np.bincount(bucket_of(keys, task.num_shards), minlength=task.num_shards)
        if copy == 0:  # the mixing statistics count each document once, whatever its weight
            counts.shard_rows = (np.array(counts.shard_rows) + shards).tolist()
        if ticket:
            result.tickets[ticket] = (np.array(result.tickets.get(ticket, 0)) + shards).tolist()
        # The proof: offered rows = written rows + duplicates + rows not drawn, and so the sums of their hashes.
        result.offered += len(texts)
        result.offered_checksum = (result.offered_checksum + sum_words(hashes)) % _MOD
        rows = Rows(keys, texts, block.extras, _tickets(len(texts), ticket) if task.has_tickets else None)
        if fresh is not None and not fresh.all():
            result.duplicates += int((~fresh).sum())
            result.duplicates_checksum = (result.duplicates_checksum + sum_words(hashes[:, ~fresh])) % _MOD
            rows = rows.take(np.flatnonzero(fresh))
        if smallest is not None and not (admitted := smallest.admit(keys)).all():
            result.sampled_out += int((~admitted).sum())
            result.sampled_out_checksum = (result.sampled_out_checksum + sum_words(hashes[:, ~admitted])) % _MOD
            rows = rows.take(np.flatnonzero(admitted))
        writer.add(rows, bucket_of(rows.keys, task.num_buckets))
    return contents


def _add_drawn(
    task: ScatterTask,
    file_index: int,
    copies: CopyCounter,
    block: RecordBlock,
    counts: FileCounts,
    result: ScatterResult,
    writer: SpillWriter,
) -> None:
    """Hand the lines of a block to the writer as often as they are drawn, each copy with a key of its own."""
    texts = as_binary(block.texts)
    hashes, lengths = hash_rows(texts), lengths_of(texts)
    _count(counts, lengths, hashes)
    for rows, numbers in repeat_rows(copies.take(len(texts)), lengths):
        keys = position_keys(task.seed, file_index, block.positions[rows], numbers)
        shards = np.bincount(bucket_of(keys, task.num_shards), minlength=task.num_shards)
        counts.shard_rows = (np.array(counts.shard_rows) + shards).tolist()
        result.offered += len(rows)
        result.offered_checksum = (result.offered_checksum + sum_words(hashes[:, rows])) % _MOD
        writer.add(Rows(keys, texts.take(to_arrow(rows))), bucket_of(keys, task.num_buckets))


def _count(counts: FileCounts, lengths: npt.NDArray[np.int64], hashes: Words) -> None:
    """Add accepted rows to what is known of their file."""
    counts.rows += len(lengths)
    counts.text_bytes += int(lengths.sum())
    counts.longest = max(counts.longest, int(lengths.max()))
    counts.checksum = (counts.checksum + sum_words(hashes)) % _MOD


def _tickets(num_rows: int, ticket: int) -> npt.NDArray[np.uint16]:
    return np.full(num_rows, ticket, np.uint16)
