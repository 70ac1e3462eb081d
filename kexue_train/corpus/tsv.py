"""Parses tab-separated lines without any quoting: the first line names the columns."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from kexue_train.corpus.builder import BlockBuilder
from kexue_train.corpus.fields import check_columns
from kexue_train.corpus.lines import LineBlock, iter_line_blocks
from kexue_train.corpus.options import ReadOptions
from kexue_train.corpus.records import RecordBlock, not_utf8, wrong_width
from kexue_train.corpus.streams import open_stream
from kexue_train.foundation.errors import CorpusError


class TsvParser:
    """Parses blocks of the lines of one file, of which it knows the header."""

    def __init__(self, path: str, options: ReadOptions, start: int) -> None:
        """Read the header on its own if the lines to come do not begin with it, which is if ``start`` is not 0."""
        self._path, self._options = path, options
        self._names: list[str] | None = None
        if start:
            with open_stream(path) as stream:
                for block in itertools.islice(iter_line_blocks(stream), 1):
                    self._take_header(block.without_bom())

    def __call__(self, block: LineBlock, positions: npt.NDArray[np.uint64]) -> RecordBlock:
        """The records of a block; ``positions`` has shape (n,) for n lines."""
        builder = BlockBuilder(self._options)
        first = 0
        if self._names is None:
            self._take_header(block)
            first = 1
        edges = itertools.pairwise(block.bounds[first:].tolist())
        for position, (low, high) in zip(positions[first:].tolist(), edges, strict=True):
            self._add(builder, position, _without_end(block.data[low:high]))
        return builder.build()

    def _take_header(self, block: LineBlock) -> None:
        line = _without_end(block.data[: block.bounds[1]])
        try:
            names = line.decode("utf-8").split("\t")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{self._path}:1: the header is not UTF-8 at byte {error.start}; convert the file with iconv"
            ) from None
        if block.long_line_bytes is not None:
            raise CorpusError(f"{self._path}:1: the header has {block.long_line_bytes} bytes; is this a .tsv file?")
        options = self._options
        check_columns(self._path, {*options.text_keys, *options.keep} - set(names), names, options)
        self._names = names

    def _add(self, builder: BlockBuilder, position: int, line: bytes) -> None:
        if not line.strip():
            builder.add_blank()
            return
        if rejected := not_utf8(position, line):
            builder.reject(rejected)
            return
        names = self._names or []
        fields = line.decode("utf-8").split("\t")
        if len(fields) != len(names):
            builder.reject(wrong_width(position, len(fields), len(names), line))
        else:
            builder.add(position, dict(zip(names, fields, strict=True)), line)


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r")
