"""Reads files in which every line is a record: text, JSON Lines and TSV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from kexue_train.corpus.builder import reject_only
from kexue_train.corpus.delimited import TsvParser
from kexue_train.corpus.json_records import parse_lines
from kexue_train.corpus.lines import LineBlock, iter_line_blocks
from kexue_train.corpus.records import ReadOptions, RecordBlock, too_long
from kexue_train.corpus.streams import open_stream
from kexue_train.corpus.text import parse_raw, parse_text

_Parser = Callable[[LineBlock, npt.NDArray[np.uint64]], RecordBlock]


def read_line_file(
    path: str,
    format: Literal["text", "jsonl", "tsv"],
    compression: str | None,
    options: ReadOptions,
    start: int = 0,
    end: int | None = None,
) -> Iterator[RecordBlock]:
    """Yield the records of the lines that begin in the bytes ``[start, end)``.

    Positions are the byte offsets of the lines in a plain file, their numbers from 0 in a compressed one.
    """
    parse = _choose_parser(path, format, options, start)
    number = 0
    with open_stream(path, compression, offset=max(start - 1, 0)) as stream:
        for block in iter_line_blocks(stream, start=start, end=end, block_bytes=options.block_bytes):
            num_lines = len(block.bounds) - 1
            numbers = np.arange(number, number + num_lines) if compression else block.offset + block.bounds[:-1]
            number += num_lines
            positions = numbers.astype(np.uint64)
            if block.long_line_bytes is not None:
                yield reject_only(too_long(int(positions[0]), block.long_line_bytes, block.data), options)
            else:
                yield parse(block if options.raw else block.without_bom(), positions)


def _choose_parser(path: str, format: str, options: ReadOptions, start: int) -> _Parser:
    if format == "tsv":
        return TsvParser(path, options, start)
    if format == "jsonl":
        return partial(parse_lines, options=options)
    return parse_raw if options.raw else parse_text
