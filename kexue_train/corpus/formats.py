"""The one table of input formats and compressions, and the one of output formats.

Readers, suffixes, the check of first bytes, help texts, ``--format`` and ``--to``, the schema of a configuration and
the table in docs/shuffle.md follow from here. A new input format is an entry and its reader. The file imports nothing
heavy, since the configuration needs it: readers are named as ``module:function``, as entry points are.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

_CORPUS = "kexue_train.corpus"


@dataclass(frozen=True, slots=True)
class InputFormat:
    """How files of one format are recognised, cut for parallel reading, read and described."""

    name: str
    """What ``--format`` and the configuration call it."""
    suffixes: tuple[str, ...]
    """File name suffixes; none for what is no file."""
    reader: str
    """Yields the records: ``f(path, compression, options)``, with ``start, end`` after that if it can be cut."""
    description: str
    """For the table of the documentation."""
    is_cut_by_bytes: bool = False
    """Whether a plain file can be cut into ranges of bytes."""
    unit_counter: str | None = None
    """Counts the units that a plain file can be cut into, such as row groups: ``f(path)``."""
    record_name: str | None = None
    """What its records are numbered as; None: by line."""
    magic: bytes | None = None
    """How its files begin."""
    needs_magic: bool = False
    """Whether all of its files begin so."""
    expansion: float = 1.0
    """Bytes of text in a byte of a plain file, about."""

    @property
    def can_be_cut(self) -> bool:
        """Whether a plain file has units to be cut into."""
        return self.is_cut_by_bytes or self.unit_counter is not None


@dataclass(frozen=True, slots=True)
class Compression:
    """One way a file can be compressed."""

    name: str
    """Arrow's name of it, where Arrow knows it."""
    suffixes: tuple[str, ...]
    magics: tuple[bytes, ...]
    """How its files can begin."""
    expansion: float
    """Bytes of text in a compressed byte, about."""
    long_magic: bytes | None = None
    """How a file must begin to be recognised under another name, where a text may begin with one of ``magics``."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What the shards of a shuffle can be."""

    name: str
    """What ``--to`` and the configuration call it."""
    suffix: str
    is_appendable: bool
    """Whether two files, one after the other, are a file of the format."""


_INPUTS = (
    InputFormat(
        name="text",
        suffixes=(".txt", ".text"),
        reader=f"{_CORPUS}.text:read_text",
        is_cut_by_bytes=True,
        description="a document is a line, the lines up to a blank one (`--document block`), or the file "
        "(`--document file`)",
    ),
    InputFormat(
        name="jsonl",
        suffixes=(".jsonl", ".ndjson", ".jsonlines", ".ldjson", ".jl"),
        reader=f"{_CORPUS}.json_records:read_json_lines",
        is_cut_by_bytes=True,
        description="a JSON object on each line",
    ),
    InputFormat(
        name="json",
        suffixes=(".json",),
        reader=f"{_CORPUS}.json_records:read_json_array",
        record_name="element",
        description="an array of objects, or JSON Lines under that name",
    ),
    InputFormat(
        name="csv",
        suffixes=(".csv",),
        reader=f"{_CORPUS}.delimited:read_csv",
        record_name="record",
        description="a table; the first row names the columns",
    ),
    InputFormat(
        name="tsv",
        suffixes=(".tsv", ".tab"),
        reader=f"{_CORPUS}.delimited:read_tsv",
        is_cut_by_bytes=True,
        description="a table without quoting; the first line names the columns",
    ),
    InputFormat(
        name="parquet",
        suffixes=(".parquet", ".pq", ".parq"),
        reader=f"{_CORPUS}.column_files:read_parquet",
        unit_counter=f"{_CORPUS}.column_files:count_row_groups",
        record_name="row",
        magic=b"PAR1",
        needs_magic=True,
        expansion=3.0,
        description="a table",
    ),
    InputFormat(
        name="arrow",
        suffixes=(".arrow", ".arrows", ".ipc", ".feather"),
        reader=f"{_CORPUS}.column_files:read_arrow",
        unit_counter=f"{_CORPUS}.column_files:count_batches",
        record_name="row",
        magic=b"ARROW1",
        description="a table; Arrow IPC, a stream or a file",
    ),
    InputFormat(
        name="hub",
        suffixes=(),
        reader=f"{_CORPUS}.hub:read_hub",
        unit_counter=f"{_CORPUS}.hub:count_hub_shards",
        description="`hf://NAME[@REVISION][:CONFIG][:SPLIT]`, a data set of the Hugging Face hub, streamed",
    ),
)
FORMATS = {entry.name: entry for entry in _INPUTS}
"""Name -> input format."""
_ZLIB_MAGICS = (b"\x78\x01", b"\x78\x9c", b"\x78\xda")  # of gzip without its header; 78 5e may be a text
_SKIPPABLE_MAGICS = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))  # of frames without data, as in lz4
COMPRESSIONS = {
    entry.name: entry
    for entry in (
        Compression("gzip", (".gz", ".gzip"), (b"\x1f\x8b", *_ZLIB_MAGICS), 3.5),
        Compression("zstd", (".zst", ".zstd"), (b"\x28\xb5\x2f\xfd", *_SKIPPABLE_MAGICS), 3.5),
        Compression("bz2", (".bz2", ".bzip2"), (b"BZh",), 4.0, long_magic=b"BZh91AY&SY"),
        Compression("xz", (".xz",), (b"\xfd7zXZ\x00",), 5.0),
        Compression("lzma", (".lzma",), (b"\x5d\x00\x00",), 5.0),
        Compression("lz4", (".lz4",), (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18", *_SKIPPABLE_MAGICS), 2.0),
    )
}
"""Name -> compression."""
OUTPUTS = {
    entry.name: entry
    for entry in (
        OutputFormat("arrow", ".arrow", is_appendable=False),
        OutputFormat("parquet", ".parquet", is_appendable=False),
        OutputFormat("jsonl", ".jsonl", is_appendable=True),
        OutputFormat("lines", ".txt", is_appendable=True),
    )
}
"""Name -> output format; ``shuffle/outputs.py`` writes and reads them."""

if TYPE_CHECKING:
    FormatChoice = str
    OutputChoice = str
else:  # for pydantic and the command line, from the tables
    FormatChoice = Literal[("auto", *(entry.name for entry in _INPUTS if entry.suffixes))]
    OutputChoice = Literal[tuple(OUTPUTS)]


def allowed_suffixes() -> str:
    """Return the suffixes of input files, for a message or a help text."""
    suffixes = [suffix for entry in FORMATS.values() for suffix in entry.suffixes]
    packed = [suffix for entry in COMPRESSIONS.values() for suffix in entry.suffixes]
    return f"{', '.join(suffixes)}, each also with {', '.join(packed)}"


def allowed_output_suffixes() -> str:
    """Return the suffixes of a single output file, for a help text."""
    return ", ".join(entry.suffix for entry in OUTPUTS.values())


def allowed_formats() -> str:
    """Return what ``--format`` takes, for a message."""
    return "|".join(name for name, entry in FORMATS.items() if entry.suffixes)


def split_suffixes(name: str) -> tuple[str | None, str | None]:
    """Return format and compression that a file name stands for: ``a.jsonl.gz`` is ``("jsonl", "gzip")``."""
    path = PurePosixPath(name.lower())
    compression = next((entry.name for entry in COMPRESSIONS.values() if path.suffix in entry.suffixes), None)
    suffix = PurePosixPath(path.stem).suffix if compression else path.suffix
    return next((entry.name for entry in FORMATS.values() if suffix and suffix in entry.suffixes), None), compression


def output_format_of(path: str) -> str | None:
    """Return the output format of a single file by its suffix; None: ``path`` is no single file."""
    return next((entry.name for entry in OUTPUTS.values() if path.lower().endswith(entry.suffix)), None)


def load_function(reference: str) -> Callable[..., Any]:
    """Import what ``module:function`` names."""
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
