"""Reads one input, or a range of one, as blocks of records in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from kexue_train.corpus.content import check_content
from kexue_train.corpus.formats import FORMATS, LINE_FORMATS, load_function
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.records import PART_BITS, ReadOptions, RecordBlock
from kexue_train.corpus.remote import is_uri
from kexue_train.corpus.streams import STANDARD_INPUT, is_pipe, open_stream
from kexue_train.corpus.xz_dictionary import check_dictionary
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
        MemoryLimitError: If a part of the file takes more than ``options.memory_bytes`` to read.
        CorpusError: If the file as a whole cannot be used; a bad record is no error but a ``Rejected``.
    """
    options = options_of(source, options)
    check_options(source.path, source.format, options)
    is_elsewhere = is_uri(source.path) and source.format != "hub"
    if start == 0 and not options.raw and (is_elsewhere or source.path == STANDARD_INPUT):
        check_content(source.path, source.format, source.compression)
    if source.units == 1:
        if start > 0 or end == 0:
            return
        end = None
    check_dictionary(source.path, source.compression, options.memory_bytes)
    format = FORMATS[source.format]
    cut = (start, end) if format.can_be_cut else ()
    yield from load_function(format.reader)(source.path, source.compression, options, *cut)


def check_memory(source: Source, options: ReadOptions) -> None:
    """Refuse an input with a part that takes more than ``options.memory_bytes`` to read, from its metadata alone.

    Whatever else is wrong with it is left to be found by reading it. One that is compressed as a whole or lies
    elsewhere is looked at when it is read: a look beforehand costs as much as reading it, or a request for each file.

    Raises:
        MemoryLimitError: If there is such a part.
    """
    options = options_of(source, options)
    if not is_uri(source.path):
        check_dictionary(source.path, source.compression, options.memory_bytes)
    check = FORMATS[source.format].memory_check
    if check and not (source.compression or is_pipe(source.path) or is_uri(source.path)):
        with suppress(CorpusError):
            load_function(check)(source.path, options)


def options_of(source: Source, options: ReadOptions) -> ReadOptions:
    """Return ``options`` with what the source of a mixture that ``source`` belongs to says otherwise."""
    named = source.named
    if named is None:
        return options
    keys = named.text_key
    return replace(
        options,
        document=named.document or options.document,
        text_keys=options.text_keys if keys is None else (keys,) if isinstance(keys, str) else keys,
    )


def describe_position(source: Source, position: int) -> str:
    """Return where in an input the record at ``position`` is, in words; reads a plain line file up to there."""
    path = "standard input" if source.path == STANDARD_INPUT else source.path
    format = FORMATS[source.format]
    if format.part_name:
        number = position & (1 << PART_BITS) - 1
        return f"{path}: {format.record_name} {number} of {format.part_name} {position >> PART_BITS}"
    if format.record_name:
        return f"{path}: {format.record_name} {position}"
    if source.compression:
        return f"{path}: line {position + 1} of the unpacked text"
    if is_uri(path) or is_pipe(source.path):
        return f"{path}: record at byte {position}"
    return f"{path}:{count_lines(source, position)}: record at byte {position}"


def count_lines(source: Source, position: int) -> int:
    """Return the number, from 1, of the line that begins at byte ``position`` of a plain file."""
    lines = 1
    with open_stream(source.path) as stream:
        while position > 0 and (data := stream.read(min(_COPY_BYTES, position))):
            lines += data.count(b"\n")
            position -= len(data)
    return lines


def check_options(path: str, format: str, options: ReadOptions) -> None:
    """Refuse options that make no sense for an input of a format.

    Raises:
        CorpusError: If they do not.
    """
    if options.keep and format == "text":
        raise CorpusError(
            f"{path}: is a text file, which has no columns to keep besides the text, but these were asked for: "
            f"{', '.join(options.keep)}; keep nothing, or give JSON Lines or a table"
        )
    if options.raw and (format not in LINE_FORMATS or options.document != "line"):
        raise CorpusError(
            f"{path}: {format} with document {options.document} cannot be read raw; only the lines of text files can"
        )
