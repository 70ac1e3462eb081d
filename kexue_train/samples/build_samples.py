"""STAGE 3: text shards + tokenizer -> sample shards, one task per shard (two if rows of all shards are mixed).

The first documents of shard 0, a uniform sample of the shuffled corpus, are kept out of training: their rows come
first (``heldout_rows`` of them), made apart, so that no training row holds a token of theirs.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from kexue_train.executor import DataStageConfig, Executor, choose_executor
from kexue_train.foundation.arrow_shards import format_checksum, read_shard, shard_paths, write_dataset_files
from kexue_train.foundation.artifacts import (
    MANIFEST_NAME,
    Manifest,
    Recipe,
    RowsChecksum,
    build_manifest,
    describe_files,
    find_complete,
    open_partial,
    publish,
    read_manifest,
    write_atomic,
)
from kexue_train.foundation.errors import ArtifactError, CorpusError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.runtime import require_disk
from kexue_train.foundation.stage import SLOTS_PER_TEXT_BYTE, Outlook, Stage, StagePlan
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.missing_pairs import note_missing_pairs
from kexue_train.samples.mix_rows import GatheredRows, GatherRowsTask, gather_rows
from kexue_train.samples.row_counts import RowCounts
from kexue_train.samples.sample_shard import ShardResult, ShardTask, make_sample_shard, sum_results
from kexue_train.samples.schema import COUNTS_NAME, TOKENIZER_NAME, sample_schema
from kexue_train.samples.segmentation import prepare_words, word_settings
from kexue_train.samples.shard_texts import text_column, text_hashes
from kexue_train.samples.source_tokens import describe_documents
from kexue_train.samples.tokenizer import load_tokenizer, note_unknown_text, special_token_ids
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import planned_shards

_SCRATCH = "scratch"
_METHOD = "2"
"""Goes up when the same settings make other rows: 2 since sentences, marks and negative pairs are found as now."""
_MIN_HELDOUT = 8
# Chinese, the slower language: 109 MB in 18.0 s on 2 workers; a task held 1.14 GB for a shard of 273 MB
# (benchmarks/RESULTS.md, "the sample stage and the loader").
_BYTES_PER_CPU_SECOND, _MEMORY_PER_TEXT_BYTE = 3.0e6, 4.2
_START_SECONDS = 1.5
"""``datasets`` is loaded, and the workers' libraries ("every second of the demo": 5.2 s for 15.5 MB on 2 CPUs)."""
_ROW_BYTES = 27
"""Borders, labels and the like of a row, beside its ids and word starts ("demo run")."""
_UINT16_IDS = 65_536
_Result = TypeVar("_Result", bound="_CountedRows", covariant=True)


def build_samples(
    config: SampleConfig,
    shards: Path,
    tokenizer: Path,
    out_dir: Path,
    *,
    seed: int,
    executor: Executor,
    replace: bool = False,
    progress: Progress = SILENT,
) -> Manifest:
    """Turn text shards into sample shards of the same number; the bytes do not depend on the executor.

    Raises:
        ArtifactError: If ``shards``, ``tokenizer`` or ``out_dir`` is damaged or not what it should be.
        CorpusError: If no text would be left to train on.
    """
    text_manifest = read_manifest(shards)
    recipe = _recipe_of(config, text_manifest, tokenizer, seed)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    note_unknown_text(tokenizer, shards, progress)
    partial = open_partial(out_dir, recipe, progress, method=_METHOD)
    (partial / _SCRATCH).mkdir(exist_ok=True)
    tasks = _plan(config, shards, text_manifest, tokenizer, partial, seed)
    # A token takes about as much as its text; rows to be mixed lie on disk twice.
    require_disk(partial, text_manifest.bytes * (2 if config.shuffle == "global" else 1), "the sample stage")
    results = _run(make_sample_shard, tasks, executor, progress)
    rows = [result.rows for result in results]
    if config.shuffle == "global":
        rows = _mix(tasks, results, executor, progress)
    return _finish(tasks, results, rows, text_manifest, recipe, out_dir, progress)


def _plan(
    config: SampleConfig, shards: Path, text_manifest: Manifest, tokenizer: Path, partial: Path, seed: int
) -> list[ShardTask]:
    paths, sources = shard_paths(shards), tuple(text_manifest.statistics.get("sources", ()))
    words = prepare_words(config, shards, partial)
    counts = [read_shard(path).num_rows for path in paths]
    heldout = max(math.ceil(config.heldout_fraction * sum(counts)), min(_MIN_HELDOUT, sum(counts) // 2))
    # All from shard 0: it is as uniform a sample as any, and validation then reads one piece of one file.
    heldout = min(heldout, counts[0])
    if heldout < 1 or heldout >= sum(counts):
        raise CorpusError(
            f"{shards}: {sum(counts)} documents, {counts[0]} of them in the first shard, cannot be split into "
            f"held-out ones (samples.heldout_fraction={config.heldout_fraction}) and ones to train on; at least "
            "2 documents and one in the first shard are needed: add documents, or use fewer shards"
        )
    has_copies = sources or any(weight > 1 for weight in text_manifest.settings.get("weights", {}).values())
    heldout_texts = _save_heldout(paths[0], heldout, partial / _SCRATCH) if has_copies else None
    return [
        ShardTask(
            index=index,
            num_shards=len(paths),
            text_shard=path,
            tokenizer=tokenizer,
            words=words,
            folder=partial,
            scratch=partial / _SCRATCH,
            config=config,
            seed=seed,
            sources=sources,
            heldout_texts=heldout_texts,
            heldout_documents=heldout if index == 0 else 0,
        )
        for index, path in enumerate(paths)
    ]


def _save_heldout(shard: Path, number: int, scratch: Path) -> Path:
    """Save the hashes of the first documents of ``shard``; one that was taken twice has a copy elsewhere."""
    path = scratch / "heldout.npy"
    np.save(path, text_hashes(text_column(shard).slice(0, number)))
    return path


class _CountedRows(Protocol):
    @property
    def rows(self) -> int: ...


class _Task(Protocol[_Result]):
    def finished(self) -> _Result | None: ...


def _run(
    function: Callable[[Any], _Result], tasks: Sequence[_Task[_Result]], executor: Executor, progress: Progress
) -> list[_Result]:
    """Return the results of all tasks, of which those that were finished before are not done again."""
    results = {index: found for index, task in enumerate(tasks) if (found := task.finished()) is not None}
    if results:
        progress.note(f"resumed: {len(results)} of {len(tasks)} shards were finished before")
    left = [index for index in range(len(tasks)) if index not in results]
    for place, result in executor.map_unordered(function, [tasks[index] for index in left]):
        results[left[place]] = result
        progress.update(len(results), len(tasks), "shards", rows=sum(found.rows for found in results.values()))
    return [results[index] for index in range(len(tasks))]


def _mix(
    tasks: Sequence[ShardTask], results: Sequence[ShardResult], executor: Executor, progress: Progress
) -> list[int]:
    """Write the shards from the rows of all; returns the rows of each."""
    first = tasks[0]
    vocab_size = load_tokenizer(first.tokenizer).get_vocab_size()
    schema = sample_schema(first.config.seq_len, vocab_size, has_sources=bool(first.sources))
    gathers = [GatherRowsTask(task.index, task.num_shards, task.scratch, task.folder, schema) for task in tasks]
    gathered: list[GatheredRows] = _run(gather_rows, gathers, executor, progress)
    made, mixed = _sum(result.output for result in results), _sum(result.output for result in gathered)
    if made != mixed:
        raise ArtifactError(
            f"{first.folder}: the mixed rows have the checksum {mixed}, the rows before mixing {made}: an intermediate "
            "file was changed; delete that folder and run the same command again"
        )
    for task in tasks:
        task.spilled.give_back()
    return [result.rows for result in gathered]


def _finish(
    tasks: Sequence[ShardTask],
    results: Sequence[ShardResult],
    shard_rows: Sequence[int],
    text_manifest: Manifest,
    recipe: Recipe,
    out_dir: Path,
    progress: Progress,
) -> Manifest:
    from datasets import Features  # noqa: PLC0415  # costs a second to import; only the end of the stage needs it

    partial, config = tasks[0].folder, tasks[0].config
    checksum = RowsChecksum(
        input=_sum(result.input for result in results), output=_sum(result.output for result in results)
    )
    # With other columns kept, the rows' hashes are not those of the texts alone.
    proof = None if text_manifest.settings.get("keep") else text_manifest.rows_checksum
    if proof and proof.output != checksum.input:
        raise ArtifactError(
            f"{tasks[0].text_shard.parent}: the documents read have the checksum {checksum.input}, the manifest says "
            f"{proof.output}: the shards were changed or damaged; make them again"
        )
    tokenizer = load_tokenizer(tasks[0].tokenizer)
    counts = sum_results(tasks, results, tokenizer.get_vocab_size(), special_token_ids(tokenizer))
    documents = sum((Counter(result.documents) for result in results), Counter())
    _require_training_rows(counts, documents)
    if config.nsp:
        note_missing_pairs(counts.numbers, progress)
    if unheard := [name for name, found in counts.by_source.describe().items() if not found["heldout_tokens"]]:
        progress.note(
            f"no held-out document is of {', '.join(unheard)}, so no loss is known of it; raise "
            "samples.heldout_fraction, or the weight of the source"
        )
    np.save(partial / COUNTS_NAME, counts.token_counts)
    names = [task.name for task in tasks]
    schema = sample_schema(config.seq_len, counts.vocab_size, has_sources=bool(tasks[0].sources))
    features = Features.from_arrow_schema(schema).to_dict()
    write_dataset_files(partial, features, names)
    _copy_tokenizer(tasks[0].tokenizer, partial / TOKENIZER_NAME)
    described = describe_files(partial, dict(zip(names, shard_rows, strict=True)))
    manifest = build_manifest(
        recipe,
        {name: entry for name, entry in described.items() if not name.startswith(_SCRATCH)},
        seed=tasks[0].seed,
        rows=counts.numbers["rows"],
        rows_checksum=checksum,
        statistics=counts.describe(dict.fromkeys(results[0].documents, 0) | documents | _by_source(tasks, results)),
    )
    shutil.rmtree(partial / _SCRATCH)
    return publish(partial, out_dir, manifest)


def _by_source(tasks: Sequence[ShardTask], results: Sequence[ShardResult]) -> dict[str, Any]:
    names = tasks[0].sources
    return {"source_documents": describe_documents(names, [r.source_documents for r in results])} if names else {}


def _require_training_rows(counts: RowCounts, documents: Mapping[str, int]) -> None:
    if counts.numbers["rows"] == counts.numbers["heldout_rows"]:
        raise CorpusError(
            f"the {documents['documents'] - documents['heldout_documents']} documents to train on hold no token; "
            "check the inputs of the corpus"
        )


def _copy_tokenizer(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(MANIFEST_NAME))


def _sum(checksums: Iterable[str]) -> str:
    return format_checksum(sum(int(checksum, 16) for checksum in checksums))


def _recipe_of(config: SampleConfig, text_manifest: Manifest, tokenizer: Path, seed: int) -> Recipe:
    parents = {"text_shards": text_manifest.content_digest, "tokenizer": read_manifest(tokenizer).content_digest}
    return Recipe(kind="sample_shards", settings={**word_settings(config), "seed": seed}, parents=parents)


def folders_by_length(folder: Path, lengths: Sequence[int]) -> dict[int, Path]:
    """Return where the rows of each length lie: ``samples`` for the first, ``samples-128`` for another one."""
    first, *others = lengths
    return {first: folder} | {length: folder.with_name(f"{folder.name}-{length}") for length in others}


def list_of_lengths(folder: Path) -> Path:
    """Return the file that names the samples of all lengths, for a training that reads more than one."""
    return folder.with_name(f"{folder.name}.yaml")


class _Config(DataStageConfig, Protocol):
    @property
    def shuffle(self) -> ShuffleConfig: ...
    @property
    def tokenizer(self) -> TokenizerConfig: ...
    @property
    def samples(self) -> SampleConfig: ...
    @property
    def row_lengths(self) -> tuple[int, ...]: ...


def _variants(config: _Config, out: Path) -> dict[Path, SampleConfig]:
    folders = folders_by_length(out, config.row_lengths)
    return {folder: config.samples.model_copy(update={"seq_len": length}) for length, folder in folders.items()}


def _recipe(config: _Config, inputs: Sequence[Path], out: Path) -> dict[Path, Recipe]:
    text_manifest = read_manifest(inputs[0])
    return {
        folder: _recipe_of(variant, text_manifest, inputs[1], config.seed)
        for folder, variant in _variants(config, out).items()
    }


def _make(config: _Config, inputs: Sequence[Path], out: Path, progress: Progress) -> None:
    (shards, tokenizer), variants = inputs, _variants(config, out)
    for folder, variant in variants.items():
        executor = choose_executor(config)
        build_samples(
            variant, shards, tokenizer, folder, seed=config.seed, executor=executor, replace=True, progress=progress
        )
    if len(variants) > 1:
        write_atomic(list_of_lengths(out), "".join(f"{folder.name}: 1\n" for folder in variants))


def _describe(config: _Config, out: Path) -> str:
    found = {variant.seq_len: read_manifest(folder) for folder, variant in _variants(config, out).items()}
    rows = " and ".join(f"{manifest.rows:,} rows of {seq_len}" for seq_len, manifest in found.items())
    first = found[config.samples.seq_len].statistics
    pairs = ", no pairs for NSP" if config.samples.nsp and not first["pairs"] else ""
    return f"{rows} tokens, {first['fill']:.1%} filled, {first['heldout_rows']:,} held out{pairs}"


def _plan_stage(config: _Config, outlook: Outlook) -> StagePlan:
    lengths, text_bytes = config.row_lengths, outlook.text_bytes
    shards, passes = planned_shards(config.shuffle, outlook.sources), 2 if config.samples.shuffle == "global" else 1
    at_once = min(shards, outlook.cpus)
    id_bytes = 2 if config.tokenizer.vocab_size <= _UINT16_IDS else 4
    disk = sum(
        math.ceil(outlook.token_slots / length) * (length * id_bytes + length // 8 + _ROW_BYTES) for length in lengths
    )
    return StagePlan(
        tasks=shards * len(lengths) * passes,
        disk_bytes=disk,
        scratch_bytes=disk // len(lengths) * (passes - 1),
        memory_bytes=int(at_once * (_MEMORY_PER_TEXT_BYTE * text_bytes / shards + 105e6)),
        seconds=_START_SECONDS + len(lengths) * text_bytes / (_BYTES_PER_CPU_SECOND * at_once),
        start_seconds=_START_SECONDS,
        basis=f"the sample stage: 3.0 MB/s per CPU; {SLOTS_PER_TEXT_BYTE} slots per byte, as of English",
    )


SAMPLES = Stage(
    name="samples",
    folder="samples",
    title="Samples",
    reads=("shuffle", "tokenizer"),
    recipe=_recipe,
    make=_make,
    describe=_describe,
    plan=_plan_stage,
)
"""Packed rows of sentence pairs, of every length that training needs."""
