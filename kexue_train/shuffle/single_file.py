"""A shuffle into one file or onto standard output, as ``shuf`` does it, with the machinery of the folders.

Shards are gathered in order, appended to the output as they come, and deleted at once: they pass through the page cache
and hardly touch the disk. A compressed file has one member or frame for each of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kexue_train.corpus.formats import LINE_FORMATS, OUTPUTS, OutputFile, output_file_of
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.mixture import Documents, patterns_of
from kexue_train.corpus.number_range import range_source
from kexue_train.corpus.patterns import check_not_among_inputs
from kexue_train.corpus.streams import is_pipe, open_stream
from kexue_train.executor import Executor
from kexue_train.foundation.artifacts import FileEntry, Manifest, fsync_folder
from kexue_train.foundation.errors import ConfigError, CorpusError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.shuffle.appending import Output, append_shards
from kexue_train.shuffle.by_source import kept_columns, sources_of
from kexue_train.shuffle.config import ShufConfig, ShuffleConfig
from kexue_train.shuffle.destination import is_standard_output, open_destination, path_to_write
from kexue_train.shuffle.kept_keys import with_all_kept
from kexue_train.shuffle.near_pass import kept_records
from kexue_train.shuffle.outputs import ShardForm
from kexue_train.shuffle.passes import Passes, read_options
from kexue_train.shuffle.plan import count_shards, split_memory
from kexue_train.shuffle.proof import Account, make_manifest
from kexue_train.shuffle.recipe import make_recipe
from kexue_train.shuffle.rejected_records import DROPPED, REJECTED, join_records
from kexue_train.shuffle.replacement import DrawnRange, draw_ranges
from kexue_train.shuffle.shuffle_corpus import allowed_memory, find_sources, plan_passes

_SHARD_BYTES = 32 * 10**6
_COPY_BYTES = 4 * 2**20


def shuffle_to_file(
    config: ShuffleConfig,
    inputs: Documents,
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
            file to keep them by, shards are asked for, standard output is closed, or ``shuf`` asks for what the rest
            does not allow.
        ResourceError: If there is no room, or standard output takes no more.
        BrokenPipeError: If nobody reads standard output to its end.
    """
    shuf = shuf or ShufConfig()
    if config.languages:
        raise ConfigError(f"{out}: is one file, where --languages has no effect; leave it out, or name a folder")
    file = _file_of(config, out)
    if not is_standard_output(out):
        check_not_among_inputs(Path(out), patterns_of(inputs))
    any_bytes = _takes_any_bytes(config)
    if shuf.input_range:
        sources = [range_source(shuf.input_range)]
    else:
        sources = find_sources(config, inputs, progress, any_bytes=any_bytes)
    config = with_all_kept(config, sources)
    form = ShardForm(config.output, kept_columns(config, sources), file.compression if file else None, shuf.line_end)
    recipe = make_recipe(config, sources, 0, seed, shuf)
    raw = any_bytes and all(source.format in LINE_FORMATS for source in sources)
    _check_options(config, shuf, raw=raw, is_weighted=bool(config.weights or sources_of(sources)))
    path = None if is_standard_output(out) else path_to_write(out, sources, raw=raw)
    with open_destination(config, path, recipe, progress) as (destination, folder):
        scratch, drawn, planned = folder / "spill", None, sources
        if shuf.repeat:
            sources = _copy_pipes(config, sources, folder)
            drawn = _draw(config, shuf, sources, seed, executor)
            planned = _weigh_by_draws(sources, drawn)
        num_shards = count_shards(planned, _SHARD_BYTES) if OUTPUTS[config.output].is_appendable else 1
        passes = plan_passes(
            config, form, planned, num_shards, seed, recipe, scratch, executor, progress, raw=raw, shuf=shuf
        )
        passes = replace(passes, sources=sources, drawn=drawn)
        output = Output(destination)
        account = append_shards(passes, output)
        proof = account.prove()
        passes.remove_spills(account.scattered)
        if path:
            _publish(passes, account, folder, path)
        rows = sum(result.rows for result in account.gathered)
        entry = FileEntry(bytes=output.bytes, checksum=output.checksum, rows=rows, rows_checksum=proof.output)
        return make_manifest(recipe, account, {Path(out).name: entry}, seed=seed, proof=proof)


def _file_of(config: ShuffleConfig, out: str) -> OutputFile | None:
    if of_folders := sorted(config.model_fields_set & {"shards", "shard_size"}):
        names = " and ".join(f"--{name.replace('_', '-')}" for name in of_folders)
        raise ConfigError(
            f"{out}: is one file, where {names} {'has' if len(of_folders) == 1 else 'have'} no effect; leave "
            f"{'it' if len(of_folders) == 1 else 'them'} out, or name a folder"
        )
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


def _check_options(config: ShuffleConfig, shuf: ShufConfig, *, raw: bool, is_weighted: bool) -> None:
    if shuf.options_for_lines and not raw:
        raise ConfigError(
            f"{' and '.join(shuf.options_for_lines)}: only where lines of text become lines: text files, --document "
            "line, no filter, and --out - or a file named .txt"
        )
    if shuf.head_count is not None and (is_weighted or config.dedup != "none"):
        raise ConfigError(
            "--head-count is given with --weight, --sources or --dedup, which change how many rows there are; shuffle "
            "with those into a file first, then take the rows from that file"
        )


def _copy_pipes(config: ShuffleConfig, sources: Sequence[Source], folder: Path) -> list[Source]:
    """Copy what can be read only once into ``folder``; returns all inputs, the copies in the place of the pipes."""
    found = []
    for number, source in enumerate(sources):
        if not is_pipe(source.path):
            found.append(source)
            continue
        copy = folder / f"piped-{number}.txt"
        with open_stream(source.path) as stream, copy.open("wb") as file:
            while data := stream.read(_COPY_BYTES):
                file.write(data)
        found += find_sources(config, [str(copy)], any_bytes=True)
    return found


def _draw(
    config: ShuffleConfig, shuf: ShufConfig, sources: Sequence[Source], seed: int, executor: Executor
) -> list[list[DrawnRange]]:
    budget = split_memory(allowed_memory(config), executor.workers_per_machine)
    options = read_options(config, shuf, budget, raw=True)
    drawn = draw_ranges(seed, shuf.head_count or 0, sources, options, shuf.header, executor, budget)
    if shuf.head_count and not any(entry.rows for group in drawn for entry in group):
        raise CorpusError("--repeat: the inputs hold no line to draw; name others, or leave --repeat out")
    return drawn


def _weigh_by_draws(sources: Sequence[Source], drawn: Sequence[Sequence[DrawnRange]]) -> list[Source]:
    """Return the inputs with the share of their lines that is drawn as their weight, so that room is planned for it."""
    rows, draws = (sum(getattr(entry, name) for group in drawn for entry in group) for name in ("rows", "draws"))
    return [replace(source, weight=draws / max(rows, 1)) for source in sources]


def _publish(passes: Passes, account: Account, folder: Path, out: Path) -> None:
    for kind in (REJECTED, DROPPED):
        join_records(kept_records(passes, account.scattered, kind), folder / kind)
        kept = folder / kind / "records.jsonl"
        if kept.exists():
            kept.replace(out.with_name(f"{out.name}.{kind}.jsonl"))
    if out.exists():  # shuffled in place
        shutil.copymode(out, folder / "out")
    (folder / "out").replace(out)
    fsync_folder(out.parent)
    shutil.rmtree(folder)
