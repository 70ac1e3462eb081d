"""Reads one input, or a range of one, as blocks of records in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

from kexue_train.corpus.column_files import read_arrow, read_parquet
from kexue_train.corpus.delimited import read_csv
from kexue_train.corpus.hub import SHARD_BITS, read_hub
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.json_records import read_json_array
from kexue_train.corpus.line_files import read_line_file
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.corpus.remote import is_uri
from kexue_train.corpus.streams import STANDARD_INPUT, open_stream
from kexue_train.corpus.text import read_blocks, read_file
from kexue_train.foundation.errors import CorpusError

_DEFAULT = ReadOptions()
_COPY_BYTES = 1 << 20


def read_records(
    source: Source, options: ReadOptions = _DEFAULT, *, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of ``source`` that begin in its units ``[start, end)``.

    Any cut of ``range(source.units)`` into ranges and any ``options.block_bytes`` give the same records. Of a damaged
    file all whole records before the damage come first.

    Args:
        source: One input.
        options: What is taken from it.
        start: First unit of the range, see ``Source.units``.
        end: Unit after the last; None for the end of the input.

    Raises:
        CorpusError: If the file as a whole cannot be used; a bad record is no error but a ``Rejected``.
    """
    _check_options(source, options)
    if source.units == 1:
        if start > 0 or end == 0:
            return
        end = None
    yield from _read(source, options, start, end)


def describe_position(source: Source, position: int) -> str:
    """Where in an input the record at ``position`` is, in words; reads a plain line file up to there."""
    path = "standard input" if source.path == STANDARD_INPUT else source.path
    match source.format:
        case "parquet" | "arrow":
            return f"{path}: row {position}"
        case "json":
            return f"{path}: element {position}"
        case "csv":
            return f"{path}: record {position}"
        case "hub":
            return f"{path}: row {position & (1 << SHARD_BITS) - 1} of shard {position >> SHARD_BITS}"
        case _ if source.compression:
            return f"{path}: line {position + 1} of the unpacked text"
        case _ if is_uri(path) or source.path == STANDARD_INPUT:
            return f"{path}: record at byte {position}"
        case _:
            return f"{path}:{count_lines(source, position)}: record at byte {position}"


def count_lines(source: Source, position: int) -> int:
    """The number, from 1, of the line that begins at byte ``position`` of a plain file."""
    lines = 1
    with open_stream(source.path) as stream:
        while position > 0 and (data := stream.read(min(_COPY_BYTES, position))):
            lines += data.count(b"\n")
            position -= len(data)
    return lines


def _check_options(source: Source, options: ReadOptions) -> None:
    if options.keep and source.format == "text":
        raise CorpusError(
            f"{source.path}: is a text file, which has no values to keep beside the text, asked for "
            f"{', '.join(options.keep)}; keep nothing, or give JSON Lines or a table"
        )
    if options.raw and (source.format != "text" or options.document != "line"):
        raise CorpusError(
            f"{source.path}: {source.format} with document {options.document} cannot be read raw; only the lines of "
            "text files can"
        )


def _read(source: Source, options: ReadOptions, start: int, end: int | None) -> Iterator[RecordBlock]:
    path, compression = source.path, source.compression
    match source.format:
        case "text" if options.document == "file":
            return read_file(path, compression, options)
        case "text" if options.document == "block":
            return read_blocks(path, compression, options, start, end)
        case "text" | "jsonl" | "tsv" as format:
            return read_line_file(path, format, compression, options, start, end)
        case "json":
            return read_json_array(path, compression, options)
        case "csv":
            return read_csv(path, compression, options)
        case "parquet":
            return read_parquet(path, compression, options, start, end)
        case "arrow":
            return read_arrow(path, compression, options, start, end)
        case "hub":
            return read_hub(path, options, start, end)
