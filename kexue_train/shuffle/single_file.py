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

from kexue_train.corpus.compression import open_compressor
from kexue_train.corpus.formats import FORMATS, LINE_FORMATS, OUTPUTS, OutputFile, output_file_of
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.number_range import range_source
from kexue_train.corpus.patterns import check_not_among_inputs
from kexue_train.corpus.remote import is_uri
from kexue_train.corpus.streams import is_pipe
from kexue_train.executor import Executor
from kexue_train.foundation.artifacts import FileEntry, Manifest, Recipe, fsync_folder, open_partial, write_atomic
from kexue_train.foundation.errors import ArtifactError, ConfigError, CorpusError, MachineLostError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.write_behind import new_file
from kexue_train.shuffle.config import ShufConfig, ShuffleConfig
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
from kexue_train.shuffle.scatter_result import ScatterResult
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
    shuf: ShufConfig | None = None,
    progress: Progress = SILENT,
) -> Manifest:
    """Write the documents of ``inputs`` in random order to the file ``out``, or standard output (``-``).

    If lines of text are shuffled into lines, every line is taken, whatever its bytes, blank ones too, and no line at
    all gives an empty output. What is left out goes to ``OUT.rejected.jsonl`` and ``OUT.dropped.jsonl``. A shuffle into
    a file resumes after a kill.

    Args:
        config: ``output`` says the format, that of the suffix of a file; ``shards`` and ``shard_size`` mean nothing.
        inputs: The same as for ``shuffle_corpus``; none with ``shuf.input_range``.
        out: A file that does not exist, compressed if its last suffix says so; or ``-``. It may be one of the inputs
            if lines are shuffled into lines; it is replaced once the result is whole.
        seed: Together with the inputs it determines every byte of the result.
        executor: Where the tasks run; it must see the folder of ``out``.
        shuf: What to do besides, as ``shuf`` does.
        progress: Receives bytes done.

    Returns:
        A manifest of one file, as a folder would have it; it is not written anywhere.

    Raises:
        ArtifactError: If ``out`` exists.
        CorpusError: As in ``shuffle_corpus``, or if ``out`` would lie among the inputs.
        ConfigError: If the suffix of ``out`` is that of another format, records would be kept aside and there is no
            file to keep them by, standard output is closed, or ``shuf`` asks for what the rest does not allow.
        ResourceError: If there is no room, or standard output takes no more.
        BrokenPipeError: If nobody reads standard output to its end.
    """
    shuf = shuf or ShufConfig()
    file = _file_of(config, out)
    if config.model_fields_set & {"shards", "shard_size"}:
        progress.note("one file is written, so the number and size of shards have no effect")
    if not is_standard_output(out):
        check_not_among_inputs(Path(out), inputs)
    any_bytes = _takes_any_bytes(config)
    if shuf.input_range:
        sources = [range_source(shuf.input_range)]
    else:
        sources = find_sources(config, inputs, progress, any_bytes=any_bytes)
    config = with_all_kept(config, sources)
    form = ShardForm(config.output, config.keep, file.compression if file else None, shuf.line_end)
    num_shards = count_shards(sources, _SHARD_BYTES) if OUTPUTS[config.output].is_appendable else 1
    recipe = make_recipe(config, sources, 0, seed, shuf)
    raw = any_bytes and all(source.format in LINE_FORMATS for source in sources)
    _check_options(config, shuf, raw=raw)
    path = None if is_standard_output(out) else _path_to_write(out, sources, raw=raw)
    with _open_destination(config, path, recipe, progress) as (destination, folder):
        scratch = folder / "spill"
        passes = plan_passes(
            config, form, sources, num_shards, seed, recipe, scratch, executor, progress, raw=raw, shuf=shuf
        )
        output = _Output(destination)
        account = _append_shards(passes, output)
        proof = account.prove()
        passes.remove_spills(account.scattered)
        if path:
            _publish(account, scratch, folder, path)
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


def _check_options(config: ShuffleConfig, shuf: ShufConfig, *, raw: bool) -> None:
    if shuf.options_for_lines and not raw:
        raise ConfigError(
            f"{' and '.join(shuf.options_for_lines)}: only where lines of text become lines: text files, --document "
            "line, no filter, and --out - or a file named .txt"
        )
    if shuf.head_count is not None and (config.weights or config.dedup != "none"):
        raise ConfigError(
            "--head-count is given with --weight or --dedup, which change how many rows there are; shuffle with those "
            "into a file first, then take the rows from that file"
        )


def _path_to_write(out: str, sources: Sequence[Source], *, raw: bool) -> Path:
    """Return the path of the file to make or, if it is an input, to replace."""
    path = Path(out)
    if not (path.exists() or path.is_symlink()):
        return path
    is_input = path.exists() and any(Path(source.path).samefile(path) for source in sources if _is_local(source))
    if is_input and raw:
        return path.resolve()
    if is_input:
        raise ArtifactError(
            f"{path}: is an input, and only lines of text can be shuffled in place, as other records may hold more "
            "than is written; choose another file with --out"
        )
    raise ArtifactError(f"{path}: already exists and is not overwritten; delete it, or choose another file with --out")


def _is_local(source: Source) -> bool:
    return bool(FORMATS[source.format].suffixes) and not (is_pipe(source.path) or is_uri(source.path))


@contextmanager
def _open_destination(
    config: ShuffleConfig, path: Path | None, recipe: Recipe, progress: Progress
) -> Iterator[tuple[Destination, Path]]:
    """Open what to write to, the standard output without a ``path``, and a folder to work in."""
    if path is None:
        if config.on_bad_record == "skip" or config.keep_dropped:
            raise ConfigError(
                "rejected and dropped records are kept in files next to the output, and standard output has no folder; "
                "give a file or folder with --out"
            )
        destination = StandardOutput()
        with temporary_folder(config.spill) as folder:
            yield destination, folder
        return
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
    header = _write_header(passes, scattered, parts)
    appended = _appended(passes) if output.is_resumable else []
    if appended:
        output.resume_after(header.stat().st_size + sum(result.file_bytes for result in appended))
    else:
        output.resume_after(0)
        output.append(header)
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


def _write_header(passes: Passes, scattered: Sequence[ScatterResult], parts: Path) -> Path:
    """Write the lines that stay first, which all inputs begin with, to a file; empty if there are none."""
    headers = {
        number: counts.header for result in scattered for number, counts in result.files.items() if counts.header
    }
    first = min(headers, default=0)
    for number, header in headers.items():
        if header != headers[first]:
            raise CorpusError(
                f"{passes.sources[number].path}: begins with another header than {passes.sources[first].path}; with "
                "--header the first lines of all inputs must be equal, as they are written once"
            )
    with new_file(parts / "header", durable=False) as file:
        if headers:
            with open_compressor(file, passes.form.compression) as sink:
                sink.write(bytes.fromhex(headers[first]))
    return parts / "header"


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
    if out.exists():  # shuffled in place
        shutil.copymode(out, folder / "out")
    (folder / "out").replace(out)
    fsync_folder(out.parent)
    shutil.rmtree(folder)
