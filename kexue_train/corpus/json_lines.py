"""Parses JSON records: the lines of JSON Lines and the elements of an array alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from kexue_train.corpus.builder import BlockBuilder
from kexue_train.corpus.lines import LineBlock
from kexue_train.corpus.options import ReadOptions
from kexue_train.corpus.records import RecordBlock, Rejected, not_utf8, reject


def parse_lines(block: LineBlock, positions: npt.NDArray[np.uint64], options: ReadOptions) -> RecordBlock:
    """The records of a block of JSON Lines; ``positions`` has shape (n,) for n lines."""
    builder = BlockBuilder(options)
    for position, line in zip(positions.tolist(), block.data.split(b"\n"), strict=False):  # nothing after the last end
        add_json(builder, position, line)
    return builder.build()


def add_json(builder: BlockBuilder, position: int, data: bytes) -> None:
    """Give ``builder`` the record whose JSON text is ``data``; blank ones are counted."""
    try:
        record = from_json(data, cache_strings="keys")
    except ValueError as error:
        line = data.strip()
        if not line:
            builder.add_blank()
        elif line != data:  # Python strips more than JSON allows around a value
            add_json(builder, position, line)
        else:
            builder.reject(not_utf8(position, line) or _bad_json(position, line, error))
    else:
        builder.add(position, record, data)


def _bad_json(position: int, line: bytes, error: ValueError) -> Rejected:
    detail = str(error).replace(" at line 1 column ", " at column ")
    if b"\r" in line:
        detail += "; its lines seem to end in carriage returns alone: convert them to newlines"
    return reject(position, "not valid JSON", detail, line)
