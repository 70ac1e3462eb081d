"""Commands from raw text to training samples."""

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexue_train.cli.commands import (
    AsJson,
    Out,
    Ray,
    Seed,
    Workers,
    command,
    make_executor,
    making,
    print_json,
    print_manifest,
    show_progress,
)
from kexue_train.cli.options import Given, options_of
from kexue_train.corpus.formats import allowed_output_suffixes, allowed_suffixes, output_file_of
from kexue_train.foundation.errors import ConfigError

if TYPE_CHECKING:
    from kexue_train.corpus.config import CorpusConfig
    from kexue_train.samples.config import SampleConfig, TokenizerConfig
    from kexue_train.shuffle.config import ShufConfig, ShuffleConfig

data_app = typer.Typer()
_NOBODY_READS = 128 + signal.SIGPIPE
"""The exit code of a program that writes on when nobody reads, as a shell shows it."""

Shards = Annotated[Path, typer.Argument(help="Folder of text shards.")]


@command(data_app, "corpus-from-docs", example="kexue corpus-from-docs --out corpus.jsonl --max-size 4MB")
def corpus_command(
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines file to write.")],
    given: "Given[CorpusConfig]" = options_of("kexue_train.corpus.config:CorpusConfig", "max_size"),
    as_json: AsJson = False,
) -> None:
    """Make a real corpus from the documentation and docstrings installed on this machine."""
    from kexue_train.corpus.installed_docs import write_docs_corpus  # noqa: PLC0415
    from kexue_train.foundation.runtime import parse_size  # noqa: PLC0415

    config = given.config(source="installed_docs")
    with show_progress("corpus-from-docs") as progress:
        statistics = write_docs_corpus(out, max_bytes=parse_size(config.max_size), progress=progress)
    if as_json:
        print_json({"file": str(out), **statistics})
    else:
        typer.echo(f"{out}: {json.dumps(statistics, ensure_ascii=False)}")


@command(
    data_app,
    "shuffle",
    example="kexue shuffle corpus.jsonl --out shards --memory 2GB\n"
    "  kexue shuffle big.txt -n 1000 -o sample.txt.gz\n"
    "  kexue shuffle lines.txt -o lines.txt",
)
def shuffle_command(
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help=f"Folder to write; or a file, by its suffix ({allowed_output_suffixes()}); or - for standard output.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, globs, @lists of them, URIs, hf://NAME, or - (standard input); suffixes: "
            f"{allowed_suffixes()}."
        ),
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(help="YAML file with named sources in place of inputs: sources: [{name, inputs, weight}]."),
    ] = None,
    given: "Given[ShuffleConfig]" = options_of("kexue_train.shuffle.config:ShuffleConfig"),
    as_shuf: "Given[ShufConfig]" = options_of("kexue_train.shuffle.config:ShufConfig"),
    echo: Annotated[bool | None, typer.Option("--echo", "-e", help="One file only: each argument is a line.")] = None,
    seed: Seed = 0,
    random_source: Annotated[
        Path | None, typer.Option(help="File whose first bytes determine the seed, such as /dev/urandom.")
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Put documents on disk in exactly uniform random order, in bounded memory."""
    from kexue_train.cli.shuf import choose_seed, open_inputs, refuse_for_folder, unread_variables  # noqa: PLC0415
    from kexue_train.shuffle.destination import is_standard_output  # noqa: PLC0415
    from kexue_train.shuffle.shuffle_corpus import shuffle_corpus  # noqa: PLC0415
    from kexue_train.shuffle.single_file import shuffle_to_file  # noqa: PLC0415

    to_standard_output = is_standard_output(out)
    if to_standard_output and as_json:
        raise ConfigError("--json and --out - both write to standard output; leave one of them out")
    file = None if to_standard_output or Path(out).is_dir() else output_file_of(out)
    seed, executor, shuf = choose_seed(seed, random_source), make_executor(workers, ray), as_shuf.config()
    with (
        open_inputs(inputs or [], sources, shuf, echo=bool(echo)) as documents,
        making("shuffle", Path(out)) as progress,
    ):
        if file is None and not to_standard_output:
            refuse_for_folder(out, as_shuf, echo=bool(echo))
            config = given.config()
            manifest = shuffle_corpus(config, documents, Path(out), seed=seed, executor=executor, progress=progress)
        else:
            config = given.config(output=file.format if file else "lines")
            for line in unread_variables(os.environ, spills_to_tmpdir=to_standard_output or config.spill is not None):
                progress.note(line)
            try:
                manifest = shuffle_to_file(
                    config, documents, out, seed=seed, executor=executor, shuf=shuf, progress=progress
                )
            except BrokenPipeError:  # ``| head`` has read enough
                raise typer.Exit(_NOBODY_READS) from None
    if not to_standard_output:
        print_manifest(Path(out), manifest, as_json)


@command(data_app, "tokenizer", example="kexue tokenizer shards --out tokenizer --vocab-size 8192")
def tokenizer_command(
    shards: Shards,
    out: Out,
    given: "Given[TokenizerConfig]" = options_of("kexue_train.samples.config:TokenizerConfig"),
    as_json: AsJson = False,
) -> None:
    """Train a WordPiece vocabulary on text shards, or take an existing one."""
    from kexue_train.samples.tokenizer import describe_coverage, train_tokenizer  # noqa: PLC0415

    config = given.config()
    with making("tokenizer", out) as progress:
        manifest = train_tokenizer(config, shards, out, progress=progress)
    print_manifest(out, manifest, as_json)
    if not as_json:
        typer.echo(f"{manifest.statistics['vocab_size']:,} pieces; {describe_coverage(manifest.statistics)}")


@command(data_app, "samples", example="kexue samples shards --tokenizer tokenizer --out samples --seq-len 128")
def samples_command(
    shards: Shards,
    tokenizer: Annotated[Path, typer.Option(help="Folder of the tokenizer.")],
    out: Out,
    given: "Given[SampleConfig]" = options_of("kexue_train.samples.config:SampleConfig"),
    seed: Seed = 0,
    workers: Workers = None,
    ray: Ray = None,
    as_json: AsJson = False,
) -> None:
    """Turn text shards into packed rows for MLM and NSP."""
    from kexue_train.samples.build_samples import build_samples  # noqa: PLC0415

    config, executor = given.config(), make_executor(workers, ray)
    with making("samples", out) as progress:
        manifest = build_samples(config, shards, tokenizer, out, seed=seed, executor=executor, progress=progress)
    print_manifest(out, manifest, as_json)
