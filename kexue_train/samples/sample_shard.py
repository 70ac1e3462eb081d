"""One task of the sample stage: one text shard -> one sample shard, its statistics and token counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.arrow_arrays import to_mask
from kexue_train.foundation.arrow_shards import ShardWriter, format_checksum, shard_name
from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.counter_rng import Purpose, generator
from kexue_train.samples.config import SampleConfig
from kexue_train.samples.encode import Documents, Encoder, concatenate
from kexue_train.samples.mix_rows import SpilledShard, spill_rows
from kexue_train.samples.nsp import Sequences, make_sequences
from kexue_train.samples.row_counts import RowCounts
from kexue_train.samples.rows import pack, permute_rows, row_batches
from kexue_train.samples.schema import sample_schema
from kexue_train.samples.segmentation import segmenter
from kexue_train.samples.shard_texts import (
    are_among,
    iter_text_batches,
    source_numbers,
    text_column,
    text_hashes,
    texts_checksum,
)
from kexue_train.samples.source_tokens import count_documents
from kexue_train.samples.tokenizer import load_tokenizer, special_token_ids


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to know."""

    index: int
    num_shards: int
    text_shard: Path
    tokenizer: Path
    words: Path | None
    """The word list, as ``prepare_words`` gives it."""
    folder: Path
    """Where the sample shard goes."""
    scratch: Path
    """Where the marker of a finished task and its counts go."""
    config: SampleConfig
    seed: int
    sources: tuple[str, ...]
    """The sources of a mixture; none: the texts are of none."""
    heldout_texts: Path | None
    """Hashes of all held-out texts, of which no copy is trained on; None: texts have no copies but by chance."""
    heldout_documents: int
    """The first so many documents of this shard are kept out of training; their rows are written first."""

    @property
    def marker(self) -> Path:
        """Exists once the task is done; holds what it counted."""
        return self.scratch / f"shard-{self.index:05d}.json"

    @property
    def token_counts(self) -> Path:
        """Occurrences of each id in the training rows."""
        return self.scratch / f"counts-{self.index:05d}.npy"

    @property
    def name(self) -> str:
        """File name of the sample shard."""
        return shard_name(self.index, self.num_shards)

    @property
    def spilled(self) -> SpilledShard:
        """Where the rows wait if those of all shards are mixed."""
        return SpilledShard(self.scratch, self.index)

    def finished(self) -> ShardResult | None:
        """Return the result if the task was done before, else None."""
        files = self.spilled.files if self.config.shuffle == "global" else [self.folder / self.name]
        if not all(path.exists() for path in (self.marker, self.token_counts, *files)):
            return None
        return ShardResult(**json.loads(self.marker.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class ShardResult:
    """What a task counted, besides the occurrences of each id; of all tasks together, the sums."""

    numbers: dict[str, int]
    """``RowCounts.numbers``."""
    word_lengths: list[int]
    """``RowCounts.word_lengths``."""
    documents: dict[str, int]
    """documents, heldout_documents; empty_documents hold no token; single_documents are one sequence, no pair; of
    weighted texts left_out_documents are left out of training, as copies of held-out ones."""
    input: str
    """Checksum of the texts."""
    output: str
    """Checksum of the rows."""
    source_documents: dict[str, list[int]] = field(default_factory=dict)
    """Of a mixture: what ``count_documents`` counts."""
    source_tokens: list[list[int]] = field(default_factory=list)
    """Of a mixture: ``SourceTokens.counts``."""

    @property
    def rows(self) -> int:
        """Rows made, held-out ones included."""
        return self.numbers["rows"]


def make_sample_shard(task: ShardTask) -> ShardResult:
    """Write the rows of one text shard, then the marker.

    Raises:
        ArtifactError: If the text shard or the tokenizer is damaged.
    """
    tokenizer = load_tokenizer(task.tokenizer)
    segment = segmenter(task.config, task.words)
    encoder = Encoder(tokenizer, whole_word=task.config.whole_word, segment=segment)
    specials = special_token_ids(tokenizer)
    texts = text_column(task.text_shard)
    heldout = min(task.heldout_documents, len(texts))
    found = {"documents": len(texts), "heldout_documents": heldout, "empty_documents": 0, "single_documents": 0}
    counts = RowCounts(task.config.seq_len, encoder.vocab_size, specials, task.sources)
    sources = source_numbers(task.text_shard, task.sources) if task.sources else None
    is_copy = _find_copies(task, texts, heldout)
    if is_copy is not None:
        found["left_out_documents"] = int(np.count_nonzero(is_copy))
    schema = sample_schema(task.config.seq_len, encoder.vocab_size, has_sources=bool(task.sources))
    with _open_outputs(task, schema) as outputs:
        for group, (column, own) in enumerate(_split(texts, sources, heldout, is_copy)):
            documents = concatenate(map(encoder.encode, iter_text_batches(column)), encoder.dtype)
            sequences = _make_sequences(task, documents, group)
            for batch in _rows(task, documents, sequences, group, own, encoder.vocab_size, specials):
                outputs[group](batch)
                counts.add(batch, is_heldout=group == 0)
            found["empty_documents"] += int(np.count_nonzero(np.diff(documents.offsets) == 0))
            found["single_documents"] += sequences.count_whole(documents)
    np.save(task.token_counts, counts.token_counts)
    result = ShardResult(
        dict(counts.numbers),
        counts.word_lengths.tolist(),
        found,
        texts_checksum(texts),
        format_checksum(counts.checksum),
        {} if sources is None else count_documents(sources, heldout, is_copy, len(task.sources)),
        counts.by_source.counts.tolist(),
    )
    write_atomic(task.marker, json.dumps(asdict(result)))
    return result


def _find_copies(task: ShardTask, texts: pa.ChunkedArray, heldout: int) -> npt.NDArray[np.bool_] | None:
    """Return which documents are copies of held-out ones, shape (documents,); these themselves are none."""
    if task.heldout_texts is None:
        return None
    is_copy = are_among(text_hashes(texts), np.load(task.heldout_texts, allow_pickle=False))
    is_copy[:heldout] = False
    return is_copy


def _split(
    texts: pa.ChunkedArray,
    sources: npt.NDArray[np.int64] | None,
    heldout: int,
    is_copy: npt.NDArray[np.bool_] | None,
) -> Iterator[tuple[pa.ChunkedArray, npt.NDArray[np.int64] | None]]:
    """Yield texts and sources of the held-out documents, then of those to train on."""
    yield texts.slice(0, heldout), None if sources is None else sources[:heldout]
    rest, own = texts.slice(heldout), None if sources is None else sources[heldout:]
    if is_copy is not None and is_copy.any():
        keep = ~is_copy[heldout:]
        rest, own = rest.filter(to_mask(keep)), None if own is None else own[keep]
    yield rest, own


def sum_results(
    tasks: Sequence[ShardTask], results: Sequence[ShardResult], vocab_size: int, special_token_ids: Mapping[str, int]
) -> RowCounts:
    """Return the counts of all tasks together, but for the checksum."""
    total = RowCounts(tasks[0].config.seq_len, vocab_size, special_token_ids, tasks[0].sources)
    for task, result in zip(tasks, results, strict=True):
        total.numbers.update(result.numbers)
        total.word_lengths += np.array(result.word_lengths)
        total.token_counts += np.load(task.token_counts, allow_pickle=False)
        if task.sources:
            total.by_source.counts += np.array(result.source_tokens)
    return total


@contextmanager
def _open_outputs(task: ShardTask, schema: pa.Schema) -> Iterator[list[Callable[[pa.RecordBatch], None]]]:
    """Open the outputs of held-out rows and of training rows."""
    if task.config.shuffle == "global":
        with spill_rows(task.spilled, schema, num_shards=task.num_shards, seed=task.seed) as rows:
            yield [rows.keep, rows.write]
    else:
        with ShardWriter(task.folder / task.name, schema) as shard:
            yield [shard.write, shard.write]


def _make_sequences(task: ShardTask, documents: Documents, group: int) -> Sequences:
    """Return the sequences of one group of documents (0: held out, 1: training)."""
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
    sources: npt.NDArray[np.int64] | None,
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
        sources=sources,
    )
