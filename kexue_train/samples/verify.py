"""Re-read sample shards and check what every row promises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.arrow_shards import format_checksum, read_shard, shard_paths
from kexue_train.foundation.artifacts import MANIFEST_NAME, Manifest, verify_artifact
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.samples.nsp import IS_RANDOM
from kexue_train.samples.row_counts import RowCounts
from kexue_train.samples.schema import (
    COUNTS_NAME,
    PAD_ID,
    RAGGED_COLUMNS,
    SOURCE_COLUMNS,
    TOKENIZER_NAME,
    column_values,
    sample_schema,
)
from kexue_train.samples.tokenizer import load_tokenizer, special_token_ids

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]

_AGAIN = "delete the folder and run its stage again"


def verify_sample_shards(folder: Path, progress: Progress = SILENT) -> Manifest:
    """Check files, every promise of every row, and every number of the manifest that follows from the rows.

    Raises:
        ArtifactError: Names the first file and row that break a promise, or the number that is wrong.
    """
    manifest = verify_artifact(folder, progress)
    if manifest.kind != "sample_shards":
        raise ArtifactError(
            f"{folder}: holds {manifest.kind}, not sample_shards; give a folder made by 'kexue samples'"
        )
    counts = _count_rows(folder, manifest, progress)
    found = format_checksum(counts.checksum)
    if manifest.rows_checksum is None or found != manifest.rows_checksum.output:
        raise ArtifactError(
            f"{folder}: {counts.numbers['rows']} rows with checksum {found}, the manifest says {manifest.rows} rows "
            f"with {manifest.rows_checksum}; {_AGAIN}"
        )
    _check_claims(folder, manifest, counts)
    return manifest


def _count_rows(folder: Path, manifest: Manifest, progress: Progress) -> RowCounts:
    """Return what is counted over all rows, each of which is checked."""
    facts = manifest.statistics
    seq_len, vocab_size, specials = facts["seq_len"], facts["vocab_size"], facts["special_token_ids"]
    sources = tuple(facts.get("sources", ()))
    schema = sample_schema(seq_len, vocab_size, has_sources=bool(sources))
    counts = RowCounts(seq_len, vocab_size, specials, sources)
    for path in shard_paths(folder):
        table = read_shard(path)
        if table.schema != schema:
            raise ArtifactError(f"{path}: has the columns {table.schema}, expected {schema}; {_AGAIN}")
        first = 0
        for batch in table.to_batches():
            broken = find_broken_row(batch, vocab_size, specials) or find_wrong_source(batch, len(sources))
            if broken is not None:
                row, promise = broken
                raise ArtifactError(f"{path}: row {first + row} violates a rule: {promise}; {_AGAIN}")
            heldout = min(batch.num_rows, max(0, facts["heldout_rows"] - counts.numbers["rows"]))
            counts.add(batch.slice(0, heldout), is_heldout=True)
            counts.add(batch.slice(heldout), is_heldout=False)
            first += batch.num_rows
            progress.update(counts.numbers["rows"], manifest.rows, "rows")
        _compare(f"{folder / MANIFEST_NAME}: rows of {path.name}", manifest.files[path.name].rows, first)
    return counts


def _check_claims(folder: Path, manifest: Manifest, counts: RowCounts) -> None:
    facts, path = manifest.statistics, folder / MANIFEST_NAME
    documents = {name: value for name, value in facts.items() if name.endswith("documents")}
    _compare(f"{path}: rows", manifest.rows, counts.numbers["rows"])
    for name, value in counts.describe(documents).items():
        _compare(f"{path}: {name}", facts.get(name), value)
    stored = np.load(folder / COUNTS_NAME, allow_pickle=False)
    if not np.array_equal(stored, counts.token_counts):
        raise ArtifactError(f"{folder / COUNTS_NAME}: does not hold the counts of the training rows; {_AGAIN}")
    tokenizer = load_tokenizer(folder / TOKENIZER_NAME)
    _compare(f"{path}: vocab_size", facts["vocab_size"], tokenizer.get_vocab_size())
    _compare(f"{path}: special_token_ids", facts["special_token_ids"], special_token_ids(tokenizer))


def _compare(what: str, stated: Any, found: Any) -> None:
    if stated != found:
        raise ArtifactError(f"{what} is {stated}, but {found} was counted; {_AGAIN}")


def find_broken_row(
    batch: pa.RecordBatch, vocab_size: int, special_token_ids: Mapping[str, int]
) -> tuple[int, str] | None:
    """Return a row that breaks a promise of the schema, and which; None if every row is good."""
    flat_ids, _ = column_values(batch.column("input_ids"))
    ids = flat_ids.reshape(batch.num_rows, -1)
    packed, _ = column_values(batch.column("word_starts"))
    starts = np.unpackbits(packed.reshape(len(ids), -1), axis=1, count=ids.shape[1], bitorder="little").astype(np.bool_)
    ragged = {name: column_values(batch.column(name)) for name in RAGGED_COLUMNS}
    counts = [np.diff(borders) for _, borders in ragged.values()]
    uneven = _first(
        (counts[0] == 0) | (counts[0] != counts[1]) | (counts[0] != counts[2]), "its lists differ in length"
    )
    if uneven:
        return uneven
    lengths, segment_a, labels = (values.astype(np.int64) for values, _ in ragged.values())
    rows = np.repeat(np.arange(len(ids)), counts[0])
    return _broken_lengths(rows, lengths, segment_a, labels, ids.shape) or _broken_slots(
        ids, starts, rows, lengths, segment_a, vocab_size, special_token_ids
    )


def find_wrong_source(batch: pa.RecordBatch, num_sources: int) -> tuple[int, str] | None:
    """Return a row of a mixture that breaks a promise about its sources, and which; None if every row is good."""
    if not num_sources:
        return None
    labels, borders = column_values(batch.column("next_sentence_labels"))
    (a_sources, a_borders), (b_sources, b_borders) = (column_values(batch.column(name)) for name in SOURCE_COLUMNS)
    uneven = (np.diff(a_borders) != np.diff(borders)) | (np.diff(b_borders) != np.diff(borders))
    if uneven.any():
        return _first(uneven, "its lists differ in length")
    rows = np.repeat(np.arange(batch.num_rows), np.diff(borders))
    wrong = (np.maximum(a_sources, b_sources) >= num_sources) | ((labels != IS_RANDOM) & (a_sources != b_sources))
    return (
        (int(rows[np.argmax(wrong)]), "a source is unknown, or B of the same document has another")
        if wrong.any()
        else None
    )


def _broken_lengths(
    rows: _Ints, lengths: _Ints, segment_a: _Ints, labels: _Ints, shape: tuple[int, ...]
) -> tuple[int, str] | None:
    single = labels == -100

    def first(bad: _Bools, promise: str) -> tuple[int, str] | None:
        return (int(rows[np.argmax(bad)]), promise) if bad.any() else None

    return (
        _first(np.bincount(rows, lengths, shape[0]) > shape[1], "its sequences are longer than the row")
        or first(~np.isin(labels, (-100, 0, 1)), "a next-sentence label is not -100, 0 or 1")
        or first(lengths < 3, "a sequence has no token")
        or first(single & (segment_a != lengths), "a single sequence has a second part")
        or first(~single & ((segment_a < 3) | (segment_a > lengths - 2)), "a pair lacks A or B")
    )


def _broken_slots(
    ids: npt.NDArray[Any],
    starts: _Bools,
    rows: _Ints,
    lengths: _Ints,
    segment_a: _Ints,
    vocab_size: int,
    special_token_ids: Mapping[str, int],
) -> tuple[int, str] | None:
    real = np.bincount(rows, lengths, len(ids)).astype(np.int64)[:, None]
    first_slots = np.cumsum(lengths) - lengths - (np.cumsum(real) - real[:, 0])[rows]
    slots = np.arange(ids.shape[1])
    padding, first_padding = slots >= real, slots == real
    expected = np.full(ids.shape, -1)  # the special token that belongs into a slot, -1: none
    expected[rows, first_slots + lengths - 1] = special_token_ids["sep"]
    expected[rows, first_slots + segment_a - 1] = special_token_ids["sep"]
    expected[rows, first_slots] = special_token_ids["cls"]
    expected[padding] = PAD_ID
    special = np.isin(ids, [special_token_ids[name] for name in ("pad", "cls", "sep", "mask")])

    def any_slot(bad: _Bools, promise: str) -> tuple[int, str] | None:
        found = np.flatnonzero(bad)
        return (int(found[0]) // ids.shape[1], promise) if found.size else None

    return (
        any_slot(ids >= vocab_size, "an id is not in the vocabulary")
        or any_slot((expected >= 0) & (ids != expected), "[CLS], [SEP] or [PAD] is missing from its place")
        or any_slot((expected < 0) & special, "a special token stands inside a text")
        or any_slot((expected >= 0) & (~padding | first_padding) & ~starts, "a special token does not start a word")
        or any_slot(_next_slots(expected >= 0) & ~padding & ~starts, "the first token of a text does not start a word")
        or any_slot(starts & padding & ~first_padding, "a word starts in the padding")
    )


def _next_slots(slots: _Bools) -> _Bools:
    """Return the slots behind ``slots`` (rows, seq_len), in the same row."""
    behind = np.zeros_like(slots)
    behind[:, 1:] = slots[:, :-1]
    return behind


def _first(bad: _Bools, promise: str) -> tuple[int, str] | None:
    return (int(np.argmax(bad)), promise) if bad.any() else None
