"""Writes rows as text: JSON Lines, plain lines, TSV."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json, to_json

from kexue_train.corpus.compression import Sink
from kexue_train.foundation.arrow_arrays import data_of, offsets_of, to_binary
from kexue_train.foundation.errors import CorpusError


class JsonOutput:
    """A JSON object on each line: the text, and the kept columns."""

    def __init__(self, file: Sink, keep: Sequence[str]) -> None:
        self._file, self._keep = file, tuple(keep)

    def write(self, texts: pa.LargeBinaryArray, extras: pa.LargeBinaryArray | None) -> None:
        """Append rows."""
        values = texts.view(pa.large_string()).to_pylist()
        if extras is None:
            lines = [to_json({"text": text}) for text in values]
        else:
            kept = (dict(zip(self._keep, from_json(row), strict=True)) for row in extras.to_pylist())
            lines = [to_json({"text": text} | more) for text, more in zip(values, kept, strict=True)]
        self._file.write(b"\n".join([*lines, b""]))


class LinesOutput:
    """The texts as lines; one that holds the end of a line cannot be written."""

    def __init__(self, file: Sink, line_end: bytes) -> None:
        self._file, self._line_end = file, line_end

    def write(self, texts: pa.LargeBinaryArray, extras: pa.LargeBinaryArray | None) -> None:  # noqa: ARG002  # none
        """Append rows.

        Raises:
            CorpusError: If a text holds the end of a line.
        """
        offsets = offsets_of(texts)
        data = np.frombuffer(data_of(texts), np.uint8)[offsets[0] : offsets[-1]]
        if (data == ord(self._line_end)).any():
            raise CorpusError(
                "a document holds a newline, so it cannot be a line of its own; write another format "
                "(--to jsonl, or a file name that ends in .jsonl)"
            )
        _write_lines(self._file, texts, self._line_end)


class TsvOutput:
    """Lines of fields between tabs; what would not be read back as it is cannot be written."""

    def __init__(self, file: Sink) -> None:
        self._file = file

    def write_header(self, names: Sequence[str]) -> None:
        """Write the names of the columns."""
        self.write_batch(pa.record_batch([pa.array([name]) for name in names], names=names))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Append rows.

        Raises:
            CorpusError: If a value is missing, or holds what separates the values.
        """
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if column.null_count or pc.any(pc.match_substring_regex(column, r"[\t\r\n]")).as_py():
                raise CorpusError(
                    f"column '{name}' has a value with a tab or a line end in it, or a missing one, which TSV cannot "
                    "hold; write CSV, JSON Lines or Parquet (--to csv, or a file name that ends in .csv)"
                )
        columns = [column.cast(pa.large_string()).view(pa.large_binary()) for column in batch.columns]
        _write_lines(self._file, pc.binary_join_element_wise(*columns, pa.scalar(b"\t", pa.large_binary())), b"\n")


def _write_lines(file: Sink, texts: pa.LargeBinaryArray, line_end: bytes) -> None:
    nothing, end = to_binary([b"", line_end])
    lines = pc.binary_join_element_wise(texts, nothing, end)
    ends = offsets_of(lines)
    file.write(data_of(lines)[ends[0] : ends[-1]])
