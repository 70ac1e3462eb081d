"""A shuffle into one file or onto standard output, as ``shuf`` does it, with the machinery of the folders.

Shards are gathered in order, appended to the output as they come, and deleted at once: they pass through the page cache
and hardly touch the disk. A compressed file has one member or frame for each of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import xxhash

from kexue_train.corpus.formats import OUTPUTS, OutputFile, output_file_of
from kexue_train.corpus.patterns import check_not_among_inputs
from kexue_train.executor import Executor
from kexue_train.foundation.artifacts import FileEntry, Manifest, Recipe, fsync_folder, open_partial, write_atomic
from kexue_train.foundation.errors import ArtifactError, ConfigError, MachineLostError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.destination import (
    Destination,
    FileDestination,
    StandardOutput,
    is_standard_output,
    temporary_folder,
)
from kexue_train.shuffle.gather import GatherResult, shard_marker_path
from kexue_train.shuffle.kept_keys import with_all_kept
from kexue_train.shuffle.outputs import ShardForm, shard_file_name
from kexue_train.shuffle.passes import Passes
from kexue_train.shuffle.plan import count_shards
from kexue_train.shuffle.proof import Account, make_manifest
from kexue_train.shuffle.recipe import make_recipe
from kexue_train.shuffle.rejected_records import DROPPED, REJECTED, join_records
from kexue_train.shuffle.shuffle_corpus import explain_full_disk, find_sources, first_pass, plan_passes

_SHARD_BYTES = 32 * 10**6
_SYNC_BYTES = 256 * 10**6
_COPY_BYTES = 4 * 2**20


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

    If lines of text are shuffled into lines, every line is taken, whatever its bytes, blank ones too, and no line at
    all gives an empty output. What is left out goes to ``OUT.rejected.jsonl`` and ``OUT.dropped.jsonl``. A shuffle into
    a file resumes after a kill.

    Args:
        config: ``output`` says the format, that of the suffix of a file; ``shards`` and ``shard_size`` mean nothing.
        inputs: The same as for ``shuffle_corpus``.
        out: A file that does not exist, compressed if its last suffix says so; or ``-``.
        seed: Together with the inputs it determines every byte of the result.
        executor: Where the tasks run; it must see the folder of ``out``.
        progress: Receives bytes done.

    Returns:
        A manifest of one file, as a folder would have it; it is not written anywhere.

    Raises:
        ArtifactError: If ``out`` exists.
        CorpusError: As in ``shuffle_corpus``, or if ``out`` would lie among the inputs.
        ConfigError: If the suffix of ``out`` is that of another format, records would be kept aside and there is no
            file to keep them by, or standard output is closed.
        ResourceError: If there is no room, or standard output takes no more.
        BrokenPipeError: If nobody reads standard output to its end.
    """
    file = _file_of(config, out)
    if config.model_fields_set & {"shards", "shard_size"}:
        progress.note("one file is written, so the number and size of shards have no effect")
    if not is_standard_output(out):
        check_not_among_inputs(Path(out), inputs)
    any_bytes = _takes_any_bytes(config)
    sources = find_sources(config, inputs, progress, any_bytes=any_bytes)
    config = with_all_kept(config, sources)
    form = ShardForm(config.output, config.keep, file.compression if file else None)
    num_shards = count_shards(sources, _SHARD_BYTES) if OUTPUTS[config.output].is_appendable else 1
    recipe = make_recipe(config, sources, 0, seed)
    raw = any_bytes and all(source.format == "text" for source in sources)
    with _open_destination(config, out, recipe, progress) as (destination, folder):
        scratch = folder / "spill"
        passes = plan_passes(config, form, sources, num_shards, seed, recipe, scratch, executor, progress, raw=raw)
        output = _Output(destination)
        account = _append_shards(passes, output)
        proof = account.prove()
        passes.remove_spills(account.scattered)
        if destination.is_resumable:
            _publish(account, scratch, folder, Path(out))
        rows = sum(result.rows for result in account.gathered)
        entry = FileEntry(bytes=output.bytes, checksum=output.checksum, rows=rows, rows_checksum=proof.output)
        return make_manifest(recipe, account, {Path(out).name: entry}, seed=seed, proof=proof)


def _file_of(config: ShuffleConfig, out: str) -> OutputFile | None:
    file = None if is_standard_output(out) else output_file_of(out)
    if file and file.format != config.output:
        raise ConfigError(
            f"{out}: is a file of {file.format} by its name, but {config.output} is asked for with --to; leave --to "
            "out, or give the file another suffix"
        )
    return file


def _takes_any_bytes(config: ShuffleConfig) -> bool:
    """Return whether the lines of text files are to be shuffled as they are, if there are no others."""
    return config.document == "line" and config.output == "lines" and not config.filters.is_active


@contextmanager
def _open_destination(
    config: ShuffleConfig, out: str, recipe: Recipe, progress: Progress
) -> Iterator[tuple[Destination, Path]]:
    """Open what to write to, and a folder to work in."""
    if is_standard_output(out):
        if config.on_bad_record == "skip" or config.keep_dropped:
            raise ConfigError(
                "rejected and dropped records are kept in files next to the output, and standard output has no folder; "
                "give a file or folder with --out"
            )
        destination = StandardOutput()
        with temporary_folder(config.spill) as folder:
            yield destination, folder
        return
    path = Path(out)
    if path.exists() or path.is_symlink():
        raise ArtifactError(
            f"{path}: already exists and is not overwritten; delete it, or choose another file with --out"
        )
    with explain_full_disk(path):
        folder = open_partial(path, recipe, progress)
        with (folder / "out").open("a+b") as file:
            yield FileDestination(file), folder


class _Output:
    """Appends the shards to their destination; counts and hashes its bytes."""

    def __init__(self, destination: Destination) -> None:
        self._destination, self._hash = destination, xxhash.xxh3_128()
        self.is_resumable = destination.is_resumable
        self.bytes = 0

    @property
    def checksum(self) -> str:
        """The checksum so far, in the form of ``artifacts.file_checksum``."""
        return f"xxh3_128:{self._hash.hexdigest()}"

    def resume_after(self, num_bytes: int) -> None:
        """Keep so many bytes of what an interrupted run wrote."""
        for data in self._destination.keep(num_bytes):
            self._count(data)

    def append(self, part: Path) -> None:
        """Move the contents of ``part`` to the end."""
        with part.open("rb") as source:
            while data := source.read(_COPY_BYTES):
                self._destination.write(data)
                self._count(data)
        part.unlink()

    def sync(self) -> None:
        """Return once everything is on disk."""
        self._destination.sync()

    def _count(self, data: bytes) -> None:
        self._hash.update(data)
        self.bytes += len(data)


def _append_shards(passes: Passes, output: _Output) -> Account:
    """Run both passes and append every shard to ``output``."""
    parts = passes.scratch / "parts"
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    scattered = first_pass(passes)
    appended = _appended(passes) if output.is_resumable else []
    output.resume_after(sum(result.file_bytes for result in appended))
    synced, unsynced_bytes = len(appended), 0
    waiting: dict[int, GatherResult] = {}
    while len(appended) < passes.plan.num_shards:
        left = [shard for shard in range(len(appended), passes.plan.num_shards) if shard not in waiting]
        try:
            for shard, result in passes.gather_all(scattered, parts, left, is_durable=False):
                waiting[shard] = result
                while (following := waiting.pop(len(appended), None)) is not None:
                    output.append(parts / shard_file_name(passes.config.output, len(appended), passes.plan.num_shards))
                    appended.append(following)
                    unsynced_bytes += following.file_bytes
                if output.is_resumable and (unsynced_bytes >= _SYNC_BYTES or len(appended) == passes.plan.num_shards):
                    _keep(passes, output, appended, synced)
                    synced, unsynced_bytes = len(appended), 0
        except MachineLostError as lost:
            passes.forget(lost)
            scattered = first_pass(passes)
    return Account(scattered, appended)


def _appended(passes: Passes) -> list[GatherResult]:
    """Return the shards that an interrupted run appended for good."""
    results: list[GatherResult] = []
    while (path := shard_marker_path(passes.scratch, len(results))).exists():
        results.append(GatherResult.from_json(path.read_text(encoding="utf-8")))
    return results


def _keep(passes: Passes, output: _Output, appended: Sequence[GatherResult], synced: int) -> None:
    """Put the output on disk, then the done markers of the shards it holds."""
    output.sync()
    for shard in range(synced, len(appended)):
        write_atomic(shard_marker_path(passes.scratch, shard), appended[shard].to_json())


def _publish(account: Account, scratch: Path, folder: Path, out: Path) -> None:
    for kind in (REJECTED, DROPPED):
        join_records(scratch, [result.spill for result in account.scattered], folder / kind, kind)
        kept = folder / kind / "records.jsonl"
        if kept.exists():
            kept.replace(out.with_name(f"{out.name}.{kind}.jsonl"))
    (folder / "out").replace(out)
    fsync_folder(out.parent)
    shutil.rmtree(folder)
