"""One task of the sample stage: one text shard -> one sample shard, its statistics and token counts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.arrow_shards import (
    ShardWriter,
    column_bytes,
    format_checksum,
    read_shard,
    shard_name,
    sum_hashes,
    text_hashes,
)
from kexue_train.artifacts import write_atomic
from kexue_train.counter_rng import Purpose, generator
from kexue_train.errors import ArtifactError
from kexue_train.samples.config import SampleConfig
from kexue_train.samples.encode import Documents, Encoder, concatenate
from kexue_train.samples.nsp import IS_RANDOM, NO_PAIR, Sequences, make_sequences
from kexue_train.samples.packing import pack, permute_rows
from kexue_train.samples.rows import row_batches
from kexue_train.samples.schema import row_hashes, sample_schema
from kexue_train.samples.tokenizer import load_tokenizer, special_token_ids

_ENCODE_BYTES = 2_000_000  # of text tokenized in one call


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to know."""

    index: int
    num_shards: int
    text_shard: Path
    tokenizer: Path
    folder: Path
    """Where the sample shard goes."""
    scratch: Path
    """Where the marker of a finished task and its counts go."""
    config: SampleConfig
    seed: int
    heldout_documents: int
    """The first so many documents of this shard are kept out of training; their rows are written first."""
    tokenizer_threads: bool
    """Whether the tokenizer may use every core, since no other task runs."""

    @property
    def marker(self) -> Path:
        """Exists once the shard is whole; holds its statistics."""
        return self.scratch / f"shard-{self.index:05d}.json"

    @property
    def counts(self) -> Path:
        """Occurrences of each id in the training rows."""
        return self.scratch / f"counts-{self.index:05d}.npy"

    @property
    def sample_shard(self) -> Path:
        """The result."""
        return self.folder / shard_name(self.index, self.num_shards)

    def finished(self) -> dict[str, Any] | None:
        """The statistics if the task was finished before, else None."""
        if not (self.marker.exists() and self.sample_shard.exists() and self.counts.exists()):
            return None
        statistics: dict[str, Any] = json.loads(self.marker.read_text(encoding="utf-8"))
        return statistics


def make_sample_shard(task: ShardTask) -> dict[str, Any]:
    """Write one sample shard, then its marker; returns the statistics, all sums.

    Raises:
        ArtifactError: If the text shard or the tokenizer is damaged.
    """
    tokenizer = load_tokenizer(task.tokenizer)
    encoder = Encoder(tokenizer, whole_word=task.config.whole_word)
    specials = special_token_ids(tokenizer)
    texts = _text_column(task.text_shard)
    heldout = min(task.heldout_documents, len(texts))
    statistics = {"documents": len(texts), "heldout_documents": heldout, "input": _texts_checksum(texts)}
    hashes = 0
    counts = np.zeros(encoder.vocab_size, np.uint64)
    with ShardWriter(task.sample_shard, sample_schema(task.config.seq_len, encoder.vocab_size)) as writer:
        for group, column in enumerate((texts.slice(0, heldout), texts.slice(heldout))):
            with _tokenizer_threads(task.tokenizer_threads):
                documents = concatenate(map(encoder.encode, _text_batches(column)), encoder.dtype)
            sequences = _make_sequences(task, documents, group)
            for batch in _rows(task, documents, sequences, group, encoder.vocab_size, specials):
                writer.write(batch)
                hashes = sum_hashes([hashes, *row_hashes(batch)])
                if group == 1:
                    ids = batch.column("input_ids").flatten().to_numpy()
                    counts += np.bincount(ids, minlength=encoder.vocab_size).astype(np.uint64)
            if group == 0:
                statistics["heldout_rows"] = writer.rows
            add_statistics(statistics, _document_statistics(documents, specials) | _sequence_statistics(sequences))
        statistics["rows"] = writer.rows
    np.save(task.counts, counts)
    statistics["output"] = format_checksum(hashes)
    write_atomic(task.marker, json.dumps(statistics))
    return statistics


def add_statistics(total: dict[str, Any], part: dict[str, Any]) -> None:
    """Add the numbers of ``part`` to those of ``total`` in place."""
    for name, value in part.items():
        total[name] = total.get(name, 0) + value


def _make_sequences(task: ShardTask, documents: Documents, group: int) -> Sequences:
    """The sequences of one group of documents (0: held out, 1: training)."""
    return make_sequences(
        documents,
        seq_len=task.config.seq_len,
        nsp=task.config.nsp,
        short_sequence_probability=task.config.short_sequence_probability,
        rng=generator(task.seed, Purpose.NSP, task.index, group),
    )


def _rows(
    task: ShardTask,
    documents: Documents,
    sequences: Sequences,
    group: int,
    vocab_size: int,
    specials: dict[str, int],
) -> Iterator[pa.RecordBatch]:
    seq_len = task.config.seq_len
    rows, num_rows = pack(sequences.lengths, seq_len)
    rows = permute_rows(rows, num_rows, seed=task.seed, stream=2 * task.index + group)
    return row_batches(
        documents,
        sequences,
        rows,
        num_rows,
        seq_len=seq_len,
        vocab_size=vocab_size,
        special_token_ids=specials,
    )


def _sequence_statistics(sequences: Sequences) -> dict[str, int]:
    return {
        "sequences": len(sequences.labels),
        "pairs": int(np.count_nonzero(sequences.labels != NO_PAIR)),
        "negative_pairs": int(np.count_nonzero(sequences.labels == IS_RANDOM)),
        "real_tokens": int(sequences.lengths.sum()),
    }


def _document_statistics(documents: Documents, specials: dict[str, int]) -> dict[str, int]:
    return {
        "document_tokens": len(documents.token_ids),
        "words": int(np.count_nonzero(documents.word_starts)),
        "unknown_tokens": int(np.count_nonzero(documents.token_ids == specials["unk"])),
        "empty_documents": int(np.count_nonzero(np.diff(documents.offsets) == 0)),
    }


def _text_column(path: Path) -> pa.ChunkedArray:
    table = read_shard(path)
    if "text" not in table.column_names or table.column("text").null_count:
        raise ArtifactError(
            f"{path}: needs a column 'text' without nulls, has {table.column_names}; "
            "give a folder made by 'kexue shuffle'"
        )
    return table.column("text")


def _texts_checksum(texts: pa.ChunkedArray) -> str:
    total = 0
    for chunk in texts.chunks:
        total += sum_hashes(text_hashes(column_bytes(chunk)))
    return format_checksum(total)


def _text_batches(texts: Iterable[Any]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for value in texts:
        text = value.as_py()
        batch.append(text)
        size += len(text)
        if size >= _ENCODE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _tokenizer_threads(enabled: bool) -> Iterator[None]:
    """Let ``tokenizers`` use threads only where one process works alone."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if enabled else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def read_counts(tasks: Iterable[ShardTask]) -> npt.NDArray[np.uint64]:
    """The sum of the tasks' counts: (vocab_size,) uint64."""
    total: npt.NDArray[np.uint64] = sum(np.load(task.counts, allow_pickle=False) for task in tasks)
    return total
