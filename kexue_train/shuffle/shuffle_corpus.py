"""STAGE 1: shuffle_corpus — input files in, text shards in an exactly uniform random order out, with proof."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from kexue_train.corpus.config import CorpusConfig
from kexue_train.corpus.inputs import Source, check_unchanged, find_inputs
from kexue_train.corpus.installed_docs import documents_of
from kexue_train.corpus.languages import require_identifier
from kexue_train.corpus.mixture import Documents, find_mixture
from kexue_train.executor import DataStageConfig, Executor, choose_executor
from kexue_train.foundation.arrow_shards import write_dataset_files
from kexue_train.foundation.artifacts import (
    MANIFEST_NAME,
    Manifest,
    Recipe,
    find_complete,
    open_partial,
    partial_dir,
    publish,
    read_manifest,
    write_atomic,
)
from kexue_train.foundation.errors import ConfigError, CorpusError, MachineLostError, ResourceError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.runtime import available_memory_bytes, format_size, parse_size, require_disk
from kexue_train.foundation.stage import Outlook, Stage, StagePlan
from kexue_train.shuffle.by_source import describe_shares, foresee_shares, kept_columns, order_sources
from kexue_train.shuffle.config import ShufConfig, ShuffleConfig, check_fits_sources
from kexue_train.shuffle.kept_keys import describe_unread, with_all_kept
from kexue_train.shuffle.near.estimate import measure_disk_rate
from kexue_train.shuffle.near_pass import clusters_of, find_near, kept_records, make_search
from kexue_train.shuffle.outputs import ShardForm, shard_file_name
from kexue_train.shuffle.passes import Passes, check_memory, load_plan, read_options
from kexue_train.shuffle.plan import count_shards, estimate_disk_bytes, estimate_text_bytes, plan_shuffle, split_memory
from kexue_train.shuffle.proof import Account, describe_shuffle_files, make_manifest
from kexue_train.shuffle.recipe import make_recipe, recipe_without_inputs
from kexue_train.shuffle.rejected_records import DROPPED, REJECTED, join_records
from kexue_train.shuffle.scatter_result import ScatterResult
from kexue_train.shuffle.text_shards import text_features
from kexue_train.shuffle.writing import measure_writing

_SCRATCH = ".spill"
_MIN_BLANK_SHARE = 0.01
# JSON Lines, 512 MB of memory: 121 to 127 MB/s on 2 cores; ``dd`` twice on the same disk, in bytes of input: a disk may
# allow no more, whatever its CPUs (benchmarks/RESULTS.md, "the shuffle beside its peers").
_BYTES_PER_CPU_SECOND, _BYTES_PER_DISK_SECOND = 62e6, 185e6
_NEAR_SECONDS_PER_BYTE = 0.07e-6  # more with dedup: near, on one CPU ("near duplicates that were planted")
_START_SECONDS = 4.0
"""A local Ray, its first tasks, the end: 4.8 s for a shuffle of 15.5 MB ("demo run")."""
_CACHE_SHARE = 0.4
"""Share of the free memory that the page cache is trusted to keep for a while."""


def shuffle_corpus(
    config: ShuffleConfig,
    inputs: Documents,
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
        inputs: Files, folders, globs, lists of them (``@files.txt``), URIs, ``hf://`` names or ``-``; or the sources of
            a mixture.
        out_dir: The folder of text shards to make.
        seed: Together with inputs and number of shards it determines every byte of the result.
        executor: Where the tasks run.
        replace: Rebuild a folder that holds other work instead of refusing it.
        progress: Receives bytes done, of twice the input (two passes).

    Raises:
        CorpusError: No input (unless ``out_dir`` was made from it), an unusable one,
            a bad record (unless told to skip it), or no document at all.
        ResourceError: Too little disk.
        ArtifactError: ``out_dir`` holds something else.
    """
    try:
        sources = find_sources(config, inputs, progress)
        config = with_all_kept(config, sources)
    except CorpusError as error:
        recipe = recipe_without_inputs(config, inputs, seed, out_dir)
        if recipe and (manifest := find_complete(out_dir, recipe, replace=replace, progress=progress)):
            progress.note(f"the inputs cannot be read any more, and are not needed: the shards are complete ({error})")
            return manifest
        raise
    num_shards = planned_shards(config, sources)
    recipe = make_recipe(config, sources, num_shards, seed)
    if (partial_dir(out_dir) / MANIFEST_NAME).exists():  # killed while publishing: only the tidying is left
        shutil.rmtree(partial_dir(out_dir) / _SCRATCH, ignore_errors=True)
    if manifest := find_complete(out_dir, recipe, replace=replace, progress=progress):
        return manifest
    if config.languages:
        require_identifier()
    with explain_full_disk(out_dir):
        partial = open_partial(out_dir, recipe, progress)
        form = ShardForm(config.output, kept_columns(config, sources))
        passes = plan_passes(config, form, sources, num_shards, seed, recipe, partial / _SCRATCH, executor, progress)
        scattered = first_pass(passes)
        _note_blank_lines(passes, scattered)
        scattered = _gather_folder(passes, scattered, partial)
        return _finish(passes, recipe, scattered, partial, out_dir)


def plan_passes(
    config: ShuffleConfig,
    form: ShardForm,
    sources: Sequence[Source],
    num_shards: int,
    seed: int,
    recipe: Recipe,
    scratch: Path,
    executor: Executor,
    progress: Progress,
    *,
    raw: bool = False,
    shuf: ShufConfig | None = None,
) -> Passes:
    """Plan the work, and refuse what cannot end for lack of disk or memory."""
    memory = allowed_memory(config)
    budget = split_memory(memory, executor.workers_per_machine)
    shuf = shuf or ShufConfig()
    options = read_options(config, shuf, budget, raw=raw)
    check_memory(sources, options, budget)
    scratch.mkdir(exist_ok=True)
    fits_memory = estimate_text_bytes(sources) < _CACHE_SHARE * available_memory_bytes()
    between_rate = measure_disk_rate(sources, options, config.near) if config.dedup == "near" else 0.0
    need = estimate_disk_bytes(sources, compress=not fits_memory, between_rate=between_rate)
    require_disk(scratch, need - _disk_used(scratch.parent), "the shuffle")
    workers = f"{budget.workers} worker{'s' if budget.workers > 1 else ''} per machine"
    progress.note(f"needs up to {format_size(need)} of disk and {format_size(memory)} of memory, {workers}")
    plan = load_plan(scratch, sources, num_shards, budget)
    return Passes(
        config=config,
        form=form,
        sources=sources,
        plan=plan,
        budget=budget,
        seed=seed,
        raw=raw,
        shuf=shuf,
        scratch=scratch,
        spill_folder=str(Path(config.spill, f"kexue-{recipe.digest[-12:]}")) if config.spill else None,
        spills_fit_memory=fits_memory,
        executor=executor,
        progress=progress,
        search=make_search(config, sources, plan, budget, seed, scratch, executor),
    )


def allowed_memory(config: ShuffleConfig) -> int:
    """Return how many bytes all processes of this machine may take together."""
    return parse_size(config.memory) if config.memory else available_memory_bytes() // 2


def first_pass(passes: Passes) -> list[ScatterResult]:
    """Scatter, check that the inputs did not change and hold a document (or lines, perhaps none), find near duplicates.

    This is all that comes before the second pass.
    """
    scattered = passes.scatter_all()
    check_unchanged(passes.sources)
    if line := describe_unread(passes.config, scattered):
        passes.progress.note(line)
    if not passes.raw and not any(result.offered for result in scattered):
        counts = [entry for result in scattered for entry in result.files.values()]
        blank = sum(entry.blank for entry in counts)
        bad, dropped = sum(entry.rejected.total() for entry in counts), sum(entry.dropped.total() for entry in counts)
        shutil.rmtree(passes.scratch.parent)
        raise CorpusError(
            f"the {len(passes.sources)} input files hold no document ({blank} blank, {bad} rejected, {dropped} "
            f"filtered), the first is {passes.sources[0].path}; check the inputs, the format and the text key "
            f"'{', '.join(passes.config.text_keys)}'"
        )
    passes.mixture.require_documents(scattered)
    find_near(passes, scattered)
    return scattered


def _note_blank_lines(passes: Passes, scattered: Sequence[ScatterResult]) -> None:
    """Say that lines are documents where the blank ones among them look as if they ended documents."""
    if passes.config.document != "line":
        return
    counts = [entry for result in scattered for number, entry in result.files.items() if _is_text(passes, number)]
    rows, blank = sum(entry.rows for entry in counts), sum(entry.blank for entry in counts)
    if blank > _MIN_BLANK_SHARE * rows and blank > 1:
        passes.progress.note(
            f"{blank:,} blank lines lie among the {rows:,} lines of text, each of which is a document; if a blank line "
            "ends a document (one sentence on each line, as in BERT's own format), use --document block "
            "(shuffle.document: block)"
        )


def _is_text(passes: Passes, number: int) -> bool:
    return passes.sources[number].format == "text"


def _gather_folder(passes: Passes, scattered: list[ScatterResult], partial: Path) -> list[ScatterResult]:
    """Run the second pass; if a machine is lost with what the first left there, repeat that part of the first."""
    while shards := passes.left_to_gather():
        try:
            for _ in passes.gather_all(scattered, partial, shards, is_durable=True):
                pass
        except MachineLostError as lost:
            passes.forget(lost)
            scattered = first_pass(passes)
    return scattered


def _finish(passes: Passes, recipe: Recipe, scattered: list[ScatterResult], partial: Path, out_dir: Path) -> Manifest:
    account = Account(scattered, passes.gathered(), clusters_of(passes), passes.mixture)
    proof = account.prove()
    passes.remove_spills(scattered)  # the markers stay: they are the memory of the work
    for torn in partial.glob(".*.tmp"):  # of a gather task that died with its machine
        torn.unlink(missing_ok=True)
    for kind in (REJECTED, DROPPED):
        join_records(kept_records(passes, scattered, kind), partial / kind)
    output = passes.config.output
    names = [shard_file_name(output, shard, passes.plan.num_shards) for shard in range(passes.plan.num_shards)]
    sources = [named.name for named in passes.mixture.sources]
    shards = [partial / name for name in names]
    written_in = measure_writing(shards, output, passes.form.keep, sources, with_languages=passes.config.languages)
    if output == "arrow":
        write_dataset_files(partial, text_features(passes.form.keep), names)
    files = describe_shuffle_files(account, output, partial)
    manifest = make_manifest(recipe, account, files, seed=passes.seed, proof=proof, written_in=written_in)
    write_atomic(partial / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    shutil.rmtree(passes.scratch)
    return publish(partial, out_dir, manifest)


def _disk_used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@contextmanager
def explain_full_disk(out: Path) -> Iterator[None]:
    """Turn the system's error into one that says how to continue."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ResourceError(
            f"{out}: the disk is full ({error.strerror}) in the middle of the shuffle; free some space (or file "
            "entries: df -i) there, then run the same command again: finished work is kept. To start "
            f"elsewhere, delete {partial_dir(out)} and give another --out"
        ) from None


def planned_shards(config: ShuffleConfig, sources: Sequence[Source]) -> int:
    """Return into how many shards ``sources`` go."""
    return config.shards or count_shards(sources, parse_size(config.shard_size))


def find_sources(
    config: ShuffleConfig, documents: Documents, progress: Progress = SILENT, *, any_bytes: bool = False
) -> list[Source]:
    """Return what ``documents`` name as ``config`` has it; ``progress`` is told what is not read.

    Raises:
        CorpusError: If an input is missing or unusable.
        ConfigError: If ``config`` has settings for single inputs beside the sources of a mixture.
    """
    if sources := order_sources(config, documents):
        try:
            check_fits_sources(config, sources)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return find_mixture(sources, format=config.format, document=config.document, note=progress.note)
    return find_inputs(
        [entry for entry in documents if isinstance(entry, str)],
        format=config.format,
        document=config.document,
        weights=config.weights,
        any_bytes=any_bytes,
        note=progress.note,
    )


class _Config(DataStageConfig, Protocol):
    @property
    def corpus(self) -> CorpusConfig: ...
    @property
    def shuffle(self) -> ShuffleConfig: ...


def _recipe(config: _Config, inputs: Sequence[Path], out: Path) -> dict[Path, Recipe]:
    documents = documents_of(config.corpus, inputs[0])
    try:
        sources = find_sources(config.shuffle, documents)
        shuffle = with_all_kept(config.shuffle, sources)
    except CorpusError:
        if recipe := recipe_without_inputs(config.shuffle, documents, config.seed, out):
            return {out: recipe}
        raise
    return {out: make_recipe(shuffle, sources, planned_shards(shuffle, sources), config.seed)}


def _make(config: _Config, inputs: Sequence[Path], out: Path, progress: Progress) -> None:
    shuffle_corpus(
        config.shuffle,
        documents_of(config.corpus, inputs[0]),
        out,
        seed=config.seed,
        executor=choose_executor(config),
        replace=True,
        progress=progress,
    )


def _describe(_config: _Config, out: Path) -> str:
    manifest = read_manifest(out)
    shards = sum(name.startswith("data-") for name in manifest.files)
    made = f"{manifest.rows:,} documents in {shards} shards, {format_size(manifest.bytes)}, checksums agree"
    return ", ".join(filter(None, [made, describe_shares(manifest.statistics), manifest.describe_rejected()]))


def _plan(config: _Config, outlook: Outlook) -> StagePlan:
    memory = parse_size(config.shuffle.memory) if config.shuffle.memory else outlook.memory_bytes // 2
    budget = split_memory(memory, outlook.cpus)
    plan = plan_shuffle(outlook.sources, planned_shards(config.shuffle, outlook.sources), budget.bucket_bytes)
    compress = outlook.text_bytes > outlook.memory_bytes // 2
    near_seconds = _NEAR_SECONDS_PER_BYTE if config.shuffle.dedup == "near" else 0.0
    by_cpus = budget.workers / (1 / _BYTES_PER_CPU_SECOND + near_seconds)
    rate = min(by_cpus, _BYTES_PER_DISK_SECOND)
    limit = "CPUs" if by_cpus < _BYTES_PER_DISK_SECOND else "the disk of that machine"
    return StagePlan(
        tasks=len(plan.tasks) + plan.num_shards,
        disk_bytes=outlook.text_bytes,
        scratch_bytes=estimate_disk_bytes(outlook.sources, compress=compress) - outlook.text_bytes,
        memory_bytes=memory,
        seconds=_START_SECONDS + outlook.text_bytes / rate,
        start_seconds=_START_SECONDS,
        basis=f"the shuffle beside its peers: {rate / 1e6:.0f} MB/s, by {limit}; {plan.num_shards} shards"
        + foresee_shares(outlook.sources),
    )


SHUFFLE = Stage(
    name="shuffle",
    folder="shards",
    title="Shuffled text",
    reads=("corpus",),
    recipe=_recipe,
    make=_make,
    describe=_describe,
    plan=_plan,
)
"""The corpus on disk in exactly uniform random order."""
