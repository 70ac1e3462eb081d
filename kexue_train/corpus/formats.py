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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kexue_train.foundation.errors import ConfigError

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
    memory_check: str | None = None
    """Refuses a plain file with a part that takes more memory to read than there is: ``f(path, options)``."""
    record_name: str | None = None
    """What its records are numbered as; None: by line."""
    part_name: str | None = None
    """What its parts are called, if it has such; see ``records.PART_BITS``."""
    magic: bytes | None = None
    """How its files begin."""
    magic_at: int = 0
    """The byte at which ``magic`` stands."""
    needs_magic: bool = False
    """Whether all of its files begin so."""
    is_archive: bool = False
    """Whether it holds files; in a folder, an archive of it is read only by name, as its files may lie there too."""
    reads_forward: bool = True
    """Whether its reader goes from front to back, so that a file of it can be read where it lies in an archive."""
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
    is_appendable: bool = True
    """Whether two files, one after the other, are unpacked as one; only such a compression is written."""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What the shards of a shuffle, or its one file, can be."""

    name: str
    """What ``--to`` and the configuration call it."""
    read_as: str
    """Name of the input format that its files are; their suffixes are that format's."""
    is_appendable: bool = False
    """Whether two files, one after the other, are a file of the format."""
    other_suffixes: tuple[str, ...] = ()
    """Suffixes of the input format that promise a layout that is only read."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Suffixes of its files; the first is that of shards."""
        return tuple(suffix for suffix in FORMATS[self.read_as].suffixes if suffix not in self.other_suffixes)

    @property
    def can_be_compressed(self) -> bool:
        """Whether a file of it may be compressed as a whole; the binary formats compress inside."""
        return FORMATS[self.read_as].magic is None


class OutputFile(NamedTuple):
    """What a file to write is, by its name."""

    format: str
    """Its name in ``OUTPUTS``."""
    compression: str | None
    """Its name in ``COMPRESSIONS``."""


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
        reader=f"{_CORPUS}.parquet_files:read_parquet",
        unit_counter=f"{_CORPUS}.parquet_files:count_row_groups",
        memory_check=f"{_CORPUS}.parquet_files:check_parquet",
        record_name="row",
        magic=b"PAR1",
        needs_magic=True,
        reads_forward=False,
        expansion=3.0,
        description="a table",
    ),
    InputFormat(
        name="arrow",
        suffixes=(".arrow", ".arrows", ".ipc", ".feather"),
        reader=f"{_CORPUS}.arrow_files:read_arrow",
        unit_counter=f"{_CORPUS}.arrow_files:count_batches",
        memory_check=f"{_CORPUS}.arrow_files:check_arrow",
        record_name="row",
        magic=b"ARROW1",
        reads_forward=False,
        description="a table; Arrow IPC, a stream or a file",
    ),
    InputFormat(
        name="wikiextractor",
        suffixes=(".wikiextractor",),
        reader=f"{_CORPUS}.wikiextractor:read_wikiextractor",
        record_name="document",
        magic=b'<doc id="',
        description="`<doc id=… url=… title=…>` and `</doc>` around each page, as wikiextractor writes them; its files "
        "(`wiki_00`) have no suffix and are known by their content",
    ),
    InputFormat(
        name="warc",
        suffixes=(".warc", ".wet"),
        reader=f"{_CORPUS}.warc_files:read_warc",
        record_name="record",
        magic=b"WARC/",
        description="a web archive; the records of plain text, as Common Crawl's WET files have them",
    ),
    InputFormat(
        name="mediawiki",
        suffixes=(".mediawiki",),
        reader=f"{_CORPUS}.mediawiki:read_mediawiki",
        record_name="page",
        magic=b"<mediawiki",
        description="an XML dump of a wiki (`.xml.bz2`, also multistream), known by its content; the articles "
        "as plain text",
    ),
    InputFormat(
        name="zip",
        suffixes=(".zip",),
        reader=f"{_CORPUS}.zip_files:read_zip",
        unit_counter=f"{_CORPUS}.zip_files:count_members",
        record_name="position",
        part_name="member",
        is_archive=True,
        magic=b"PK\x03\x04",
        reads_forward=False,
        expansion=3.5,
        description="an archive; its members are read as files of their own",
    ),
    InputFormat(
        name="tar",
        suffixes=(".tar",),
        reader=f"{_CORPUS}.tar_files:read_tar",
        record_name="position",
        part_name="member",
        is_archive=True,
        magic=b"ustar",
        magic_at=257,
        reads_forward=False,
        description="an archive; its members are read as files of their own",
    ),
    InputFormat(
        name="hub",
        suffixes=(),
        reader=f"{_CORPUS}.hub:read_hub",
        unit_counter=f"{_CORPUS}.hub:count_hub_shards",
        record_name="row",
        part_name="shard",
        reads_forward=False,
        description="`hf://NAME[@REVISION][:CONFIG][:SPLIT]`, a data set of the Hugging Face hub, streamed",
    ),
    InputFormat(
        name="range",
        suffixes=(),
        reader=f"{_CORPUS}.number_range:read_range",
        unit_counter=f"{_CORPUS}.number_range:count_numbers",
        record_name="number",
        description="`--input-range LO-HI`, the whole numbers from LO to HI as lines",
    ),
)
FORMATS = {entry.name: entry for entry in _INPUTS}
"""Name -> input format."""
_ZLIB_MAGICS = (b"\x78\x01", b"\x78\x9c", b"\x78\xda")  # of gzip without its header; 78 5e may be a text
_SKIPPABLE_MAGICS = tuple(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))  # of frames without data, as in lz4
LINE_FORMATS = ("text", "range")
"""Formats whose records may be lines of any bytes."""
COMPRESSIONS = {
    entry.name: entry
    for entry in (
        Compression("gzip", (".gz", ".gzip"), (b"\x1f\x8b", *_ZLIB_MAGICS), 3.5),
        Compression("zstd", (".zst", ".zstd"), (b"\x28\xb5\x2f\xfd", *_SKIPPABLE_MAGICS), 3.5),
        Compression("bz2", (".bz2", ".bzip2"), (b"BZh",), 4.0, long_magic=b"BZh91AY&SY"),
        Compression("xz", (".xz",), (b"\xfd7zXZ\x00",), 5.0),
        Compression("lzma", (".lzma",), (b"\x5d\x00\x00",), 5.0, is_appendable=False),
        Compression("lz4", (".lz4",), (b"\x04\x22\x4d\x18", b"\x02\x21\x4c\x18", *_SKIPPABLE_MAGICS), 2.0),
    )
}
"""Name -> compression."""
_PACKED = {
    *(".7z", ".rar"),
    *(".z", ".lz", ".br", ".sz", ".snappy", ".lzo", ".zlib"),
}
"""Suffixes of archives and compressions that are not read."""
_SHORT_SUFFIXES = {
    ".tgz": ".tar.gz",
    ".tbz": ".tar.bz2",
    ".tbz2": ".tar.bz2",
    ".txz": ".tar.xz",
    ".tzst": ".tar.zst",
}
"""Suffix that stands for two -> those."""
OUTPUTS = {
    entry.name: entry
    for entry in (
        OutputFormat("arrow", read_as="arrow", other_suffixes=(".ipc", ".feather")),  # it is written as a stream
        OutputFormat("parquet", read_as="parquet"),
        OutputFormat("jsonl", read_as="jsonl", is_appendable=True),
        OutputFormat("lines", read_as="text", is_appendable=True),
        OutputFormat("csv", read_as="csv"),
        OutputFormat("tsv", read_as="tsv"),
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
    """Return the suffixes of a single output file, for a message or a help text."""
    outputs, compressions = OUTPUTS.values(), [entry for entry in COMPRESSIONS.values() if entry.is_appendable]
    text, binary, packed = (
        ", ".join(suffix for entry in entries for suffix in entry.suffixes)
        for entries in (
            [entry for entry in outputs if entry.can_be_compressed],
            [entry for entry in outputs if not entry.can_be_compressed],
            compressions,
        )
    )
    return f"{text}, each also with {packed}; {binary}"


def allowed_formats() -> str:
    """Return what ``--format`` takes, for a message."""
    return "|".join(name for name, entry in FORMATS.items() if entry.suffixes)


def split_suffixes(name: str) -> tuple[str | None, str | None]:
    """Return format and compression that a file name stands for: ``a.jsonl.gz`` is ``("jsonl", "gzip")``."""
    inner, compression = _split_compression(name)
    suffix = PurePosixPath(inner).suffix
    return next((entry.name for entry in FORMATS.values() if suffix and suffix in entry.suffixes), None), compression


def output_file_of(name: str) -> OutputFile | None:
    """Return what a single file of that name is; None: the name is that of a folder, without a suffix or with a slash.

    A number is no suffix, as in ``shards-v1.0``.

    Raises:
        ConfigError: If no file is written under the suffix, so that neither a file nor a folder is meant for sure; or
            if the name is a URI.
    """
    if "://" in name:
        raise ConfigError(f"{name}: is a URI, but outputs are local; give --out a path, and copy the result afterwards")
    suffix = PurePosixPath(name).suffix.lower()
    if not suffix or suffix[1:].isdigit() or name.endswith("/"):
        return None
    _, compression = split_suffixes(PurePosixPath(name).name)
    inner = PurePosixPath(name).with_suffix("").suffix.lower() if compression else suffix
    found = next((entry for entry in OUTPUTS.values() if inner in entry.suffixes), None)
    if found and (compression is None or (found.can_be_compressed and COMPRESSIONS[compression].is_appendable)):
        return OutputFile(found.name, compression)
    if found and not found.can_be_compressed:
        hint = f"{found.name} is not compressed as a whole: leave the last suffix out"
    else:
        hint = f"for a folder of that name, write {name}/"
    raise ConfigError(
        f"{name}: no file is written under the suffix '{suffix}'; the name of a single file ends in "
        f"{allowed_output_suffixes()}; {hint}"
    )


def inner_suffix(name: str) -> str:
    """Return the suffix before that of a compression, in lower case; empty if there is none."""
    return PurePosixPath(_split_compression(name)[0]).suffix


def is_packed(name: str) -> bool:
    """Return whether the name is that of an archive, or of a file compressed in a way that is not read."""
    return inner_suffix(name) in _PACKED


def is_archive(format: str | None) -> bool:
    """Return whether that is the name of the format of an archive."""
    return format is not None and FORMATS[format].is_archive


def _split_compression(name: str) -> tuple[str, str | None]:
    """Return the name without the suffix of a compression, in lower case, and the compression."""
    path = PurePosixPath(name.lower())
    if path.suffix in _SHORT_SUFFIXES:
        path = path.with_suffix(_SHORT_SUFFIXES[path.suffix])
    found = next((entry.name for entry in COMPRESSIONS.values() if path.suffix in entry.suffixes), None)
    return (path.stem if found else path.name), found


def load_function(reference: str) -> Callable[..., Any]:
    """Import what ``module:function`` names."""
    module, _, name = reference.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
