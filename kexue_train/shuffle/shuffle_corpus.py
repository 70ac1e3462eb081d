"""STAGE 1: shuffle_corpus — input files in, text shards in an exactly uniform random order out, with proof."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from kexue_train.arrow_shards import shard_name, write_dataset_files
from kexue_train.artifacts import (
    MANIFEST_NAME,
    Manifest,
    Recipe,
    find_complete,
    open_partial,
    partial_dir,
    publish,
    write_atomic,
)
from kexue_train.corpus.inputs import Source, find_inputs
from kexue_train.errors import CorpusError, ResourceError
from kexue_train.executor import Executor
from kexue_train.progress import SILENT, Progress
from kexue_train.runtime import available_memory_bytes, parse_size, require_disk
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.gather import GatherResult, GatherTask, gather, shard_marker_path
from kexue_train.shuffle.pieces import group_pieces
from kexue_train.shuffle.plan import (
    MemoryBudget,
    ShufflePlan,
    count_shards,
    estimate_disk_bytes,
    plan_shuffle,
    split_memory,
)
from kexue_train.shuffle.proof import prove_and_describe
from kexue_train.shuffle.recipe import make_recipe
from kexue_train.shuffle.scatter import ScatterResult, ScatterTask, marker_path, rejected_path, scatter, spill_path
from kexue_train.shuffle.text_shards import TEXT_SCHEMA

_SCRATCH = ".spill"
_PLAN = "plan.json"


def shuffle_corpus(
    config: ShuffleConfig,
    inputs: Sequence[str],
    out_dir: Path,
    *,
    seed: int,
    executor: Executor,
    replace: bool = False,
    progress: Progress = SILENT,
) -> Manifest:
    """Write the documents of ``inputs`` to ``out_dir`` in random order and return the manifest; resumes after a kill.

    Args:
        config: The section ``shuffle``.
        inputs: Files, folders or globs.
        out_dir: The folder of text shards to make.
        seed: Together with inputs and number of shards it determines every byte of the result.
        executor: Where the tasks run.
        replace: Make a folder that holds other work anew instead of refusing.
        progress: Receives bytes done, of twice the input (two passes).

    Raises:
        CorpusError: No input, an unusable one, a bad record (unless told to skip it), or no document at all.
        ResourceError: Too little disk.
        ArtifactError: ``out_dir`` holds something else.
    """
    sources = find_inputs(inputs, format=config.format)
    num_shards = config.shards or count_shards(sources, parse_size(config.shard_size))
    recipe = make_recipe(config, sources, num_shards, seed)
    if (partial_dir(out_dir) / MANIFEST_NAME).exists():  # killed while publishing: only the tidying is left
        shutil.rmtree(partial_dir(out_dir) / _SCRATCH, ignore_errors=True)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    memory = parse_size(config.memory) if config.memory else available_memory_bytes() // 2
    budget = split_memory(memory, executor.num_workers)
    with _explain_full_disk(out_dir):
        partial = open_partial(out_dir, recipe)
        scratch = partial / _SCRATCH
        scratch.mkdir(exist_ok=True)
        plan = _load_plan(scratch, sources, num_shards, budget)
        require_disk(partial, estimate_disk_bytes(sources) - _disk_used(partial), "the shuffle")
        scattered = _scatter_all(config, sources, plan, budget, scratch, seed, executor, progress)
        _check_unchanged(sources)
        if not any(result.rows for result in scattered):
            blank, bad = sum(r.blank for r in scattered), sum(sum(r.rejected.values()) for r in scattered)
            shutil.rmtree(partial)
            raise CorpusError(
                f"the {len(sources)} input files hold no document ({blank} blank, {bad} rejected), the first is "
                f"{sources[0].path}; check the inputs, the format and the text key '{config.text_key}'"
            )
        gathered = _gather_all(plan, scattered, budget, partial, sources, executor, progress)
        return _finish(recipe, plan, scattered, gathered, partial, out_dir, seed)


def _load_plan(scratch: Path, sources: Sequence[Source], num_shards: int, budget: MemoryBudget) -> ShufflePlan:
    """The plan the work began with, so that a rerun with other memory can go on; else a new one."""
    path = scratch / _PLAN
    if path.exists():
        return ShufflePlan.from_json(json.loads(path.read_text(encoding="utf-8")))
    plan = plan_shuffle(sources, num_shards, budget.bucket_bytes)
    write_atomic(path, json.dumps(plan.to_json()))
    return plan


def _scatter_all(
    config: ShuffleConfig,
    sources: Sequence[Source],
    plan: ShufflePlan,
    budget: MemoryBudget,
    scratch: Path,
    seed: int,
    executor: Executor,
    progress: Progress,
) -> list[ScatterResult]:
    tasks = [
        ScatterTask(
            index=index,
            source=sources[entry.file_index],
            range=entry,
            text_key=config.text_key,
            seed=seed,
            num_buckets=plan.num_buckets,
            drop_duplicates=config.dedup == "exact",
            fail_on_bad_record=config.on_bad_record == "fail",
            block_bytes=budget.block_bytes,
            folder=str(scratch),
        )
        for index, entry in enumerate(plan.ranges)
    ]
    total = 2 * sum(source.bytes for source in sources)
    todo = [task for task in tasks if not marker_path(scratch, task.index).exists()]
    if len(todo) < len(tasks):
        progress.note(f"resumed: {len(tasks) - len(todo)} of {len(tasks)} input pieces were read before")
    done = sum(task.range.bytes for task in tasks) - sum(task.range.bytes for task in todo)
    progress.update(done, total, "bytes", phase="read")
    for index, _ in executor.map_unordered(scatter, todo):
        done += todo[index].range.bytes
        progress.update(done, total, "bytes", phase="read")
    return [ScatterResult.from_json(marker_path(scratch, task.index).read_text(encoding="utf-8")) for task in tasks]


def _gather_all(
    plan: ShufflePlan,
    scattered: Sequence[ScatterResult],
    budget: MemoryBudget,
    partial: Path,
    sources: Sequence[Source],
    executor: Executor,
    progress: Progress,
) -> list[GatherResult]:
    scratch = partial / _SCRATCH
    pieces, sizes = group_pieces(scattered, plan)
    tasks = [
        GatherTask(
            shard=shard,
            num_shards=plan.num_shards,
            buckets_per_shard=plan.buckets_per_shard,
            pieces=pieces[shard],
            bucket_bytes=budget.bucket_bytes,
            spill_folder=str(scratch),
            out_folder=str(partial),
        )
        for shard in range(plan.num_shards)
        if not shard_marker_path(scratch, shard).exists()
    ]
    if len(tasks) < plan.num_shards:
        progress.note(f"resumed: {plan.num_shards - len(tasks)} of {plan.num_shards} shards were written before")
    input_bytes = sum(source.bytes for source in sources)
    rate = input_bytes / max(sum(sizes), 1)
    done = input_bytes + rate * (sum(sizes) - sum(sizes[task.shard] for task in tasks))
    for index, _ in executor.map_unordered(gather, tasks):
        done += rate * sizes[tasks[index].shard]
        progress.update(done, 2 * input_bytes, "bytes", phase="write")
    return [
        GatherResult.from_json(shard_marker_path(scratch, shard).read_text(encoding="utf-8"))
        for shard in range(plan.num_shards)
    ]


def _finish(
    recipe: Recipe,
    plan: ShufflePlan,
    scattered: Sequence[ScatterResult],
    gathered: Sequence[GatherResult],
    partial: Path,
    out_dir: Path,
    seed: int,
) -> Manifest:
    scratch = partial / _SCRATCH
    for index in range(len(plan.ranges)):  # the markers stay: they are the memory of the work
        spill_path(scratch, index).unlink(missing_ok=True)
    _write_rejected(scratch, partial, len(plan.ranges))
    names = [shard_name(shard, plan.num_shards) for shard in range(plan.num_shards)]
    write_dataset_files(partial, TEXT_SCHEMA, names)
    manifest = prove_and_describe(recipe, plan, scattered, gathered, partial, seed)
    write_atomic(partial / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    shutil.rmtree(scratch)
    return publish(partial, out_dir, manifest)


def _write_rejected(scratch: Path, partial: Path, num_tasks: int) -> None:
    """One file of all rejected records, by input and position."""
    found = [path for index in range(num_tasks) if (path := rejected_path(scratch, index)).exists()]
    if not found:
        return
    (partial / "rejected").mkdir(exist_ok=True)
    with (partial / "rejected" / "records.jsonl").open("wb") as out:
        for path in found:
            with path.open("rb") as part:
                shutil.copyfileobj(part, out)
        out.flush()
        os.fsync(out.fileno())


def _check_unchanged(sources: Sequence[Source]) -> None:
    for source in sources:
        try:
            status = Path(source.path).stat()
        except OSError:
            status = None
        if status is None or (status.st_size, status.st_mtime_ns) != (source.bytes, source.modified_ns):
            raise CorpusError(
                f"{source.path}: was changed while it was read; let it be finished, then run the same command again"
            )


def _disk_used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _explain_full_disk(out_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"{out_dir}: the disk is full ({error.strerror}) in the middle of the shuffle; free some space there, then "
            "run the same command again: the pieces that are done are kept. To start elsewhere, delete "
            f"{partial_dir(out_dir)} and give another --out"
        ) from None
