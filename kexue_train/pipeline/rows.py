"""From a step of a run back to its rows, their documents, and the files and lines of these.

Which rows a step reads is a pure function of the configuration (``batches/order.py``), so nothing has to be logged.
The documents are found by their tokens, and the lines by the documents' texts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from kexue_train.batches.dataset import SampleDataset
from kexue_train.corpus.readers import describe_position
from kexue_train.foundation.arrow_shards import shard_paths
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import ArtifactError, ConfigError, CorpusError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.samples.build_samples import list_of_lengths
from kexue_train.samples.find_tokens import Place, Tokens, find_tokens
from kexue_train.samples.schema import SOURCE_COLUMNS
from kexue_train.samples.tokenizer import load_tokenizer
from kexue_train.shuffle.read_again import find_again, hash_documents, read_again, sources_of_files
from kexue_train.train.faults.spikes import SkippedRows, count_skipped_rows
from kexue_train.train.job import JobConfig, TrainDir, read_samples
from kexue_train.train.phases import Phase, phase_of, plan_phases
from kexue_train.train.stage import job_of

FOLLOWS, OTHER = 0, 1


@dataclass(frozen=True)
class Segment:
    """A or B of a sequence."""

    text: str
    """Its tokens as text, as far as the vocabulary keeps it."""
    tokens: Tokens
    source: str = ""
    """Name of the source it is of in a mixture; empty without one."""
    places: tuple[Place, ...] = ()
    """The documents that hold it, once they are looked for: mostly one, more if documents repeat each other."""


@dataclass(frozen=True)
class SampleSequence:
    """A sequence of a row."""

    first: Segment
    second: Segment | None
    follows: bool | None
    """Whether the second segment follows the first; None if there is none."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All of them."""
        return (self.first,) if self.second is None else (self.first, self.second)


@dataclass(frozen=True)
class Row:
    """A row of samples that a step read."""

    number: int
    """In its folder of samples, as ``datasets`` counts."""
    epoch: int
    shard: int
    """Number of the sample shard."""
    sequences: tuple[SampleSequence, ...]


class Step(NamedTuple):
    """What a step read."""

    number: int
    samples: Path
    rows: tuple[Row, ...]
    skipped_rows: int
    """Rows that the training left out before, since their loss was a spike."""


def rows_of_step(run: RunDir, step: int, *, left_out: bool = False) -> Step:
    """Return the rows of step number ``step`` of a run's pretraining, as text.

    Args:
        run: A run whose samples are there.
        step: From 1.
        left_out: The rows that the step read before the training went back to a checkpoint and left them out.

    Raises:
        ConfigError: If there is no such step, or nothing was left out there.
        ArtifactError: If the samples are missing or damaged.
    """
    config = RunConfig.load(run.config)
    job = job_of(config)
    source = list_of_lengths(run.samples) if len(config.row_lengths) > 1 else run.samples
    datasets = read_samples(source, job)
    if not 1 <= step <= job.train.steps:
        raise ConfigError(f"--step {step}: this training has the steps 1 to {job.train.steps:,}")
    phases = _phases_of(job, [dataset.seq_len for dataset in datasets])
    phase = phase_of(phases, step)
    dataset = datasets[phase.number - 1]
    if not isinstance(dataset, SampleDataset) or len(dataset.folders) > 1:
        raise ConfigError(f"{source}: mixes several folders; steps of one folder of samples can be traced")
    skipped = _skipped_before(TrainDir(run.pretrain), step, phase.seq_len, left_out=left_out)
    first = phase.rows(step - 1) + skipped
    numbers, epochs = dataset.rows_at(np.arange(first, first + phase.global_batch_size), job.seed)
    rows = _read_rows(dataset, numbers, epochs, load_tokenizer(dataset.folders[0] / "tokenizer"))
    return Step(step, dataset.folders[0], rows, skipped)


def with_documents(step: Step, shards: Path, progress: Progress = SILENT) -> Step:
    """Return the step with the documents of its segments; reads every text shard that its rows may come from.

    Raises:
        ArtifactError: If the text shards are not those that the samples were made from.
    """
    manifest = read_manifest(step.samples)
    if manifest.parents.get("text_shards") != read_manifest(shards).content_digest:
        raise ArtifactError(f"{shards}: the samples {step.samples} were made from other text shards; make them again")
    tokenizer = load_tokenizer(step.samples / "tokenizer")
    is_mixed = manifest.settings.get("shuffle") == "global"
    paths = shard_paths(shards)
    wanted = [(row, segment) for row in step.rows for sequence in row.sequences for segment in sequence.segments]
    found: dict[int, tuple[Place, ...]] = {id(segment): () for _, segment in wanted}
    for number, path in enumerate(paths):
        here = [segment for row, segment in wanted if is_mixed or row.shard == number]
        if here:
            for segment, places in zip(here, find_tokens(path, tokenizer, [s.tokens for s in here]), strict=True):
                found[id(segment)] += tuple(places)
        progress.update(number + 1, len(paths), "shards")
    return step._replace(rows=tuple(_with_places(row, found) for row in step.rows))


def find_lines(step: Step, shards: Path, progress: Progress = SILENT) -> dict[str, list[str]]:
    """Return where the documents of a step lie in the inputs of the shuffle: text -> files and lines.

    Reads all inputs. Those that are gone are left out.

    Raises:
        CorpusError: If an input can no longer be read as it was.
    """
    manifest = read_manifest(shards)
    settings = manifest.settings
    texts = sorted({place.text for place in _places(step)})
    wanted = dict(zip(zip(*_hashes(texts), strict=True), texts, strict=True)) if texts else {}
    lines: dict[str, list[str]] = {text: [] for text in texts}
    owners = sources_of_files(manifest)
    for number, (entry, named) in enumerate(zip(manifest.inputs, owners, strict=True), 1):
        path = Path(entry.uri) if "://" not in entry.uri else None
        there = entry.uri if path is None or path.is_absolute() else str(shards.parent / path)
        try:
            sources = find_again([there], settings, named)
        except CorpusError:
            progress.note(f"{entry.uri}: is not there any more, so its lines are not known")
            continue
        for source in sources:
            for block in read_again(source, settings):
                high, low = hash_documents(block.texts)
                for position, key in zip(block.positions, zip(high.tolist(), low.tolist(), strict=True), strict=True):
                    if key in wanted:
                        lines[wanted[key]].append(describe_position(source, int(position)))
        progress.update(number, len(manifest.inputs), "files")
    return lines


def _hashes(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    high, low = hash_documents(pa.array(texts, pa.large_string()))
    return high.tolist(), low.tolist()


def _places(step: Step) -> Iterator[Place]:
    for row in step.rows:
        for sequence in row.sequences:
            for segment in sequence.segments:
                yield from segment.places


def _phases_of(job: JobConfig, seq_lens: Sequence[int]) -> tuple[Phase, ...]:
    # Micro-batches do not matter here; these sizes divide the rows of a step whatever they are.
    sizes = [settings.global_batch_size // job.train.num_workers for settings in job.train.phase_settings]
    return plan_phases(job.train, seq_lens, sizes)


def _skipped_before(paths: TrainDir, step: int, seq_len: int, *, left_out: bool) -> int:
    entries = [entry for entry in _skips_of(paths) if entry.after_step < step]
    if left_out:
        if not entries:
            raise ConfigError(f"--left-out: the training left out no rows that step {step} had read; leave it away")
        last = entries[-1].after_step
        entries = [entry for entry in entries if entry.after_step != last]
    return count_skipped_rows(entries, seq_len)


def _skips_of(paths: TrainDir) -> list[SkippedRows]:
    states = sorted(paths.checkpoints.glob("step-*/trainer_state.json"))
    if not states:
        return []
    state = json.loads(states[-1].read_text(encoding="utf-8"))
    return [SkippedRows(*entry) for entry in state.get("left_out", ())]


def _read_rows(dataset: SampleDataset, numbers: Tokens, epochs: Tokens, tokenizer: Tokenizer) -> tuple[Row, ...]:
    columns = dataset.take(numbers)
    manifest = dataset.manifests[0]
    ends = np.cumsum([manifest.files[path.name].rows or 0 for path in shard_paths(dataset.folders[0])])
    rows = []
    for index, (number, epoch) in enumerate(zip(numbers.tolist(), epochs.tolist(), strict=True)):
        lengths, firsts, labels = (
            columns[name][index] for name in ("sequence_lengths", "segment_a_lengths", "next_sentence_labels")
        )
        starts = np.cumsum(lengths) - lengths
        names = _source_names(dataset, columns, index)
        sequences = [
            _sequence(columns["input_ids"][index][start : start + length], first, label, of, tokenizer)
            for start, length, first, label, of in zip(starts, lengths, firsts, labels, names, strict=True)
            if length
        ]
        shard = int(np.searchsorted(ends, number, "right"))
        rows.append(Row(number, epoch, shard, tuple(sequences)))
    return tuple(rows)


def _source_names(dataset: SampleDataset, columns: Mapping[str, Tokens], index: int) -> list[tuple[str, str]]:
    """Return the names of the sources of A and B of each sequence of a row, empty where there is no mixture."""
    if not dataset.sources:
        return [("", "")] * len(columns["sequence_lengths"][index])
    numbers = (columns[name][index].tolist() for name in SOURCE_COLUMNS)
    return [(dataset.sources[a], dataset.sources[b]) for a, b in zip(*numbers, strict=True)]


def _sequence(tokens: Tokens, first: int, label: int, sources: tuple[str, str], tokenizer: Tokenizer) -> SampleSequence:
    """Cut ``[CLS] A [SEP] B [SEP]``; ``first`` counts [CLS] A [SEP]."""
    a = _segment(tokens[1 : first - 1], sources[0], tokenizer)
    if label not in (FOLLOWS, OTHER):
        return SampleSequence(a, None, None)
    return SampleSequence(a, _segment(tokens[first:-1], sources[1], tokenizer), bool(label == FOLLOWS))


def _segment(tokens: Tokens, source: str, tokenizer: Tokenizer) -> Segment:
    return Segment(tokenizer.decode(tokens.tolist()), tokens, source)


def _with_places(row: Row, found: dict[int, tuple[Place, ...]]) -> Row:
    def fill(segment: Segment) -> Segment:
        return replace(segment, places=found[id(segment)])

    sequences = [
        replace(sequence, first=fill(sequence.first), second=sequence.second and fill(sequence.second))
        for sequence in row.sequences
    ]
    return replace(row, sequences=tuple(sequences))
