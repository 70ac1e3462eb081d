"""A shuffle into one file or onto standard output, as ``shuf`` does it, with the machinery of the folders.

Shards are gathered in order, appended to the output as they come, and deleted at once: they pass through the page cache
and hardly touch the disk.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from kexue_train.artifacts import Manifest, Recipe, fsync_folder, open_partial, write_atomic
from kexue_train.corpus.inputs import Source, find_inputs
from kexue_train.errors import ArtifactError, ConfigError, MachineLostError
from kexue_train.executor import Executor
from kexue_train.progress import SILENT, Progress
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.gather import GatherResult, shard_marker_path
from kexue_train.shuffle.left_out import DROPPED, REJECTED, join_left_out
from kexue_train.shuffle.outputs import SUFFIXES, OutputFormat, file_name
from kexue_train.shuffle.passes import Passes
from kexue_train.shuffle.plan import count_shards
from kexue_train.shuffle.proof import Account, prove_and_describe
from kexue_train.shuffle.recipe import make_recipe
from kexue_train.shuffle.scatter_result import ScatterResult
from kexue_train.shuffle.shuffle_corpus import explain_full_disk, first_pass, prepare

STANDARD_OUTPUT = "-"

_SHARD_BYTES = 32 * 10**6
_SYNC_BYTES = 256 * 10**6
_COPY_BYTES = 4 * 2**20


def output_of(path: str) -> OutputFormat | None:
    """The format of a single file by its suffix; None: ``path`` is no single file."""
    return next((output for output, suffix in SUFFIXES.items() if path.lower().endswith(suffix)), None)


def shuffle_to_file(
    config: ShuffleConfig,
    inputs: Sequence[str],
    out: str,
    *,
    seed: int,
    executor: Executor,
    progress: Progress = SILENT,
) -> Manifest:
    """Write the documents of ``inputs`` in random order to the file ``out``, or standard output (``-``).

    If lines of text are shuffled into lines, every line is taken, whatever its bytes, blank ones too. What is left out
    goes to ``OUT.rejected.jsonl`` and ``OUT.dropped.jsonl``. Killed and run again, a shuffle into a file goes on.

    Args:
        config: ``output`` says the format; ``shards`` and ``shard_size`` mean nothing here.
        inputs: As for ``shuffle_corpus``.
        out: A file that does not exist, or ``-``.
        seed: Together with the inputs it determines every byte of the result.
        executor: Where the tasks run; it must see the folder of ``out``.
        progress: Receives bytes done.

    Returns:
        What the manifest of a folder would say.

    Raises:
        ArtifactError: If ``out`` exists.
        ConfigError: If records would be kept aside and there is no file to keep them by.
    """
    sources = find_inputs(inputs, format=config.format, document=config.document, weights=config.weights)
    num_shards = 1 if config.output in ("arrow", "parquet") else count_shards(sources, _SHARD_BYTES)
    recipe = make_recipe(config, sources, 0, seed)
    raw = _is_raw(config, sources)
    with _open_output(config, out, recipe, progress) as (file, folder), explain_full_disk(Path(out)):
        scratch = folder / "spill"
        passes = prepare(config, sources, num_shards, seed, recipe, scratch, executor, progress, raw=raw)
        scattered, gathered = _append_shards(passes, file, is_resumable=out != STANDARD_OUTPUT)
        account = Account(scattered, gathered)
        proof = account.prove()
        passes.remove_spills(scattered)
        if out != STANDARD_OUTPUT:
            _publish(scratch, folder, Path(out))
        return prove_and_describe(recipe, account, folder, seed=seed, output=config.output, proof=proof)


def _is_raw(config: ShuffleConfig, sources: Sequence[Source]) -> bool:
    is_text = config.document == "line" and all(source.format == "text" for source in sources)
    return is_text and config.output == "lines" and not config.filters.is_active


@contextmanager
def _open_output(
    config: ShuffleConfig, out: str, recipe: Recipe, progress: Progress
) -> Iterator[tuple[IO[bytes], Path]]:
    """The file to write to, and a folder to work in."""
    if out == STANDARD_OUTPUT:
        if config.on_bad_record == "skip" or config.keep_dropped:
            raise ConfigError(
                "records that are left out are kept beside the output, and standard output has no place beside it; "
                "give a file or folder with --out"
            )
        with tempfile.TemporaryDirectory(prefix="kexue-", dir=config.spill) as temporary:
            yield sys.stdout.buffer, Path(temporary)
        return
    path = Path(out)
    if path.exists() or path.is_symlink():
        raise ArtifactError(f"{path}: exists and is left alone; delete it, or choose another file with --out")
    folder = open_partial(path, recipe, progress)
    with (folder / "out").open("ab") as file:
        yield file, folder


def _append_shards(
    passes: Passes, file: IO[bytes], *, is_resumable: bool
) -> tuple[list[ScatterResult], list[GatherResult]]:
    """Both passes; appends every shard to ``file``."""
    parts = passes.scratch / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    scattered = first_pass(passes)
    appended = _appended(passes) if is_resumable else []
    if is_resumable:
        file.truncate(sum(result.file_bytes for result in appended))
    synced, unsynced_bytes = len(appended), 0
    waiting: dict[int, GatherResult] = {}
    while len(appended) < passes.plan.num_shards:
        left = [shard for shard in range(len(appended), passes.plan.num_shards) if shard not in waiting]
        try:
            for shard, result in passes.gather_all(scattered, parts, left, is_durable=False):
                waiting[shard] = result
                while (following := waiting.pop(len(appended), None)) is not None:
                    _append(parts / file_name(passes.config.output, len(appended), passes.plan.num_shards), file)
                    appended.append(following)
                    unsynced_bytes += following.file_bytes
                if is_resumable and (unsynced_bytes >= _SYNC_BYTES or len(appended) == passes.plan.num_shards):
                    _sync(passes, file, appended, synced)
                    synced, unsynced_bytes = len(appended), 0
        except MachineLostError as lost:
            passes.forget(lost)
            scattered = first_pass(passes)
    file.flush()
    return scattered, appended


def _appended(passes: Passes) -> list[GatherResult]:
    """The shards that an interrupted run appended for good."""
    results: list[GatherResult] = []
    while (path := shard_marker_path(passes.scratch, len(results))).exists():
        results.append(GatherResult.from_json(path.read_text(encoding="utf-8")))
    return results


def _append(part: Path, file: IO[bytes]) -> None:
    with part.open("rb") as source:
        shutil.copyfileobj(source, file, _COPY_BYTES)
    part.unlink()


def _sync(passes: Passes, file: IO[bytes], appended: Sequence[GatherResult], synced: int) -> None:
    """Put the file on disk, then the marks that say how much of it there is."""
    file.flush()
    os.fsync(file.fileno())
    for shard in range(synced, len(appended)):
        write_atomic(shard_marker_path(passes.scratch, shard), appended[shard].to_json())


def _publish(scratch: Path, folder: Path, out: Path) -> None:
    for kind in (REJECTED, DROPPED):
        join_left_out(scratch, folder / kind, kind)
        kept = folder / kind / "records.jsonl"
        if kept.exists():
            kept.replace(out.with_name(f"{out.name}.{kind}.jsonl"))
    (folder / "out").replace(out)
    fsync_folder(out.parent)
    shutil.rmtree(folder)
