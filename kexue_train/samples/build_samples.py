"""STAGE 3: text shards + tokenizer -> sample shards, one task per shard.

The first documents of shard 0, a uniform sample of the shuffled corpus, are kept out of training: their rows come
first (``heldout_rows`` of them), made apart, so that no training row holds a token of theirs.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from kexue_train.arrow_shards import format_checksum, read_shard, shard_name, shard_paths, write_dataset_files
from kexue_train.artifacts import (
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
)
from kexue_train.errors import ArtifactError, CorpusError
from kexue_train.executor import Executor
from kexue_train.progress import SILENT, Progress
from kexue_train.runtime import require_disk
from kexue_train.samples.config import SampleConfig
from kexue_train.samples.sample_shard import ShardTask, add_statistics, make_sample_shard, read_counts
from kexue_train.samples.schema import sample_schema
from kexue_train.samples.tokenizer import load_tokenizer, special_token_ids

COUNTS_NAME = "token_counts.npy"
TOKENIZER_NAME = "tokenizer"
"""The tokenizer travels with the samples, since training writes it into every checkpoint."""
_SCRATCH = "scratch"
_MIN_HELDOUT = 8


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
    parents = {"text_shards": text_manifest.content_digest, "tokenizer": read_manifest(tokenizer).content_digest}
    settings = {**config.model_dump(mode="json"), "seed": seed}
    recipe = Recipe(kind="sample_shards", settings=settings, parents=parents)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    partial = open_partial(out_dir, recipe)
    (partial / _SCRATCH).mkdir(exist_ok=True)
    tasks = _plan(config, shards, tokenizer, partial, seed, executor.num_workers)
    require_disk(partial, text_manifest.bytes, "the sample stage")  # a token takes about as much as its text
    results = _run(tasks, executor, progress)
    return _finish(tasks, results, text_manifest, recipe, out_dir)


def _plan(
    config: SampleConfig, shards: Path, tokenizer: Path, partial: Path, seed: int, num_workers: int
) -> list[ShardTask]:
    paths = shard_paths(shards)
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
    return [
        ShardTask(
            index=index,
            num_shards=len(paths),
            text_shard=path,
            tokenizer=tokenizer,
            folder=partial,
            scratch=partial / _SCRATCH,
            config=config,
            seed=seed,
            heldout_documents=heldout if index == 0 else 0,
            tokenizer_threads=min(num_workers, len(paths)) <= 1,
        )
        for index, path in enumerate(paths)
    ]


def _run(tasks: list[ShardTask], executor: Executor, progress: Progress) -> list[dict[str, Any]]:
    results = {task.index: found for task in tasks if (found := task.finished()) is not None}
    if results:
        progress.note(f"resumed: {len(results)} of {len(tasks)} shards were finished before")
    left = [task for task in tasks if task.index not in results]
    for place, result in executor.map_unordered(make_sample_shard, left):
        results[left[place].index] = result
        tokens = sum(found["real_tokens"] for found in results.values())
        progress.update(len(results), len(tasks), "shards", tokens=tokens)
    return [results[task.index] for task in tasks]


def _finish(
    tasks: list[ShardTask], results: list[dict[str, Any]], text_manifest: Manifest, recipe: Recipe, out_dir: Path
) -> Manifest:
    from datasets import Features  # noqa: PLC0415  # costs a second to import; only the end of the stage needs it

    partial, config = tasks[0].folder, tasks[0].config
    tokenizer = load_tokenizer(tasks[0].tokenizer)
    vocab_size = tokenizer.get_vocab_size()
    checksum = RowsChecksum(input=_sum(results, "input"), output=_sum(results, "output"))
    # With other columns kept, the rows' hashes are not those of the texts alone.
    proof = None if text_manifest.settings.get("keep") else text_manifest.rows_checksum
    if proof and proof.output != checksum.input:
        raise ArtifactError(
            f"{tasks[0].text_shard.parent}: the documents read have the checksum {checksum.input}, the manifest says "
            f"{proof.output}: the shards were changed or damaged; make them anew"
        )
    np.save(partial / COUNTS_NAME, read_counts(tasks))
    names = [shard_name(task.index, task.num_shards) for task in tasks]
    features = Features.from_arrow_schema(sample_schema(config.seq_len, vocab_size)).to_dict()
    write_dataset_files(partial, features, names)
    rows = {name: result["rows"] for name, result in zip(names, results, strict=True)}
    _copy_tokenizer(tasks[0].tokenizer, partial / TOKENIZER_NAME)
    files = {name: entry for name, entry in describe_files(partial, rows).items() if not name.startswith(_SCRATCH)}
    statistics = _statistics(results, config, vocab_size) | {"special_token_ids": special_token_ids(tokenizer)}
    manifest = build_manifest(
        recipe,
        files,
        seed=tasks[0].seed,
        rows=sum(rows.values()),
        rows_checksum=checksum,
        statistics=statistics,
    )
    shutil.rmtree(partial / _SCRATCH)
    return publish(partial, out_dir, manifest)


def _copy_tokenizer(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(MANIFEST_NAME))


def _sum(results: list[dict[str, Any]], name: str) -> str:
    return format_checksum(sum(int(result[name], 16) for result in results))


def _statistics(results: list[dict[str, Any]], config: SampleConfig, vocab_size: int) -> dict[str, Any]:
    total: dict[str, Any] = {"pairs": 0, "negative_pairs": 0, "sequences": 0, "real_tokens": 0}
    for result in results:
        add_statistics(total, {name: value for name, value in result.items() if name not in ("input", "output")})
    rows = total.pop("rows")
    if rows == total["heldout_rows"]:
        raise CorpusError(
            f"the {total['documents'] - total['heldout_documents']} documents to train on hold no token; "
            "check the inputs of the corpus"
        )
    return {
        "seq_len": config.seq_len,
        "vocab_size": vocab_size,
        **total,
        "fill": round(total["real_tokens"] / (rows * config.seq_len), 6),
        "unknown_rate": round(total["unknown_tokens"] / max(1, total["document_tokens"]), 6),
        "tokens_per_document": round(total["document_tokens"] / total["documents"], 3),
        "tokens_per_word": round(total["document_tokens"] / max(1, total["words"]), 4),
        "mean_pairs_per_row": round(total["pairs"] / rows, 4),
        "mean_sequences_per_row": round(total["sequences"] / rows, 4),
    }
