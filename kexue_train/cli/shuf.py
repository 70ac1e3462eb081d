"""What the command ``shuffle`` takes from the programs that it can stand in for, ``shuf`` and terashuf."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import xxhash

from kexue_train.cli.options import Given
from kexue_train.corpus.mixture import Documents, read_sources
from kexue_train.foundation.errors import ConfigError
from kexue_train.shuffle.config import ShufConfig

_SOURCE_BYTES = 2**20
_VARIABLES = {"MEMORY": "--memory", "SEED": "--seed", "SKIP": "--header", "SEP": "--zero-terminated"}
"""Environment variable that terashuf reads -> the option that says the same here."""


@contextmanager
def open_inputs(inputs: Sequence[str], sources: Path | None, shuf: ShufConfig, *, echo: bool) -> Iterator[Documents]:
    """Yield the inputs that the arguments of a command name, or with ``echo`` a file with the arguments as its lines.

    Those of a mixture are listed in the file ``sources``.

    Raises:
        ConfigError: If there are none or too many, an argument holds a line end, or ``sources`` is wrong.
    """
    if sources:
        if inputs or echo or shuf.input_range:
            raise ConfigError("--sources takes the place of inputs, but inputs are given; leave one of them out")
        yield read_sources(sources)
    elif shuf.input_range:
        if inputs or echo:
            raise ConfigError("--input-range takes the place of inputs, but inputs are given; leave one of them out")
        yield []
    elif echo:
        with tempfile.TemporaryFile() as file:
            file.writelines(_as_lines(inputs, shuf.line_end))
            file.seek(0)
            yield [f"/dev/fd/{file.fileno()}"]
    elif inputs:
        yield list(inputs)
    elif sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no inputs; name files, folders or globs, or pipe lines of text in")
    else:
        yield ["-"]


def _as_lines(arguments: Sequence[str], line_end: bytes) -> Iterator[bytes]:
    for number, line in enumerate(map(os.fsencode, arguments), start=1):
        if line_end in line:
            raise ConfigError(
                f"--echo: argument {number} has a line end in it, so it cannot be a line; with --zero-terminated it can"
            )
        yield line + line_end


def choose_seed(seed: int, random_source: Path | None) -> int:
    """Return ``seed``, or one that the first MiB of a file or device determines.

    Raises:
        ConfigError: If the file cannot be read or holds nothing, or both are given.
    """
    if random_source is None:
        return seed
    if seed:
        raise ConfigError("--seed and --random-source are both given; leave one of them out")
    try:
        with random_source.open("rb") as file:
            data = file.read(_SOURCE_BYTES)
    except OSError as error:
        raise ConfigError(f"--random-source {random_source}: cannot be read ({error.strerror})") from None
    if not data:
        raise ConfigError(f"--random-source {random_source}: is empty; give a file with some bytes, or use --seed")
    return xxhash.xxh32_intdigest(data)


def unread_variables(environment: Mapping[str, str], *, spills_to_tmpdir: bool) -> list[str]:
    """Return a line about each variable that terashuf would read and this command does not."""
    options = _VARIABLES if spills_to_tmpdir else _VARIABLES | {"TMPDIR": "--spill"}
    return [
        f"{name}={environment[name]!r} in the environment has no effect here; the option is {option}"
        for name, option in options.items()
        if name in environment
    ]


def refuse_for_folder(out: str, as_shuf: Given[ShufConfig], *, echo: bool) -> None:
    """Refuse what a folder of shards has no use for.

    Raises:
        ConfigError: Names the options.
    """
    given = [as_shuf.flags[key] for key in as_shuf.values] + ["--echo"] * echo
    if given:
        raise ConfigError(
            f"{out}: would be a folder of shards, but {', '.join(given)} can only be had for one file; give --out a "
            "name such as out.txt, or -"
        )
