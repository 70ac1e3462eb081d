"""The whole numbers of a range as lines, which no file holds: what ``shuf -i LO-HI`` shuffles."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from kexue_train.corpus.inputs import Source
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.foundation.errors import CorpusError

_END = 2**63
_LINE_BYTES = 20


def range_source(text: str) -> Source:
    """Return the input that ``LO-HI`` stands for; it is empty if LO is HI + 1.

    Raises:
        CorpusError: If ``text`` is no such range.
    """
    low, end = _parse(text)
    return Source(text, "range", None, _count_bytes(end) - _count_bytes(low), 0, max(end - low, 1))


def count_numbers(path: str) -> int:
    """Return how many numbers the range ``path`` has."""
    low, end = _parse(path)
    return end - low


def read_range(
    path: str, _: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the numbers that lie ``start`` to ``end`` - 1 above LO, as lines; positions are these distances."""
    low, high = _parse(path)
    stop = high - low if end is None else min(end, high - low)
    step = max(options.block_bytes // _LINE_BYTES, 1)
    for first in range(start, stop, step):
        numbers = np.arange(first, min(first + step, stop), dtype=np.int64)
        lines = pa.array(numbers + low).cast(pa.string()).cast(pa.large_string())
        yield RecordBlock(numbers.astype(np.uint64), lines.view(pa.large_binary()) if options.raw else lines)


def _parse(text: str) -> tuple[int, int]:
    """Return the first number, and the one after the last."""
    found = re.fullmatch(r"(\d{1,19})-(\d{1,19})", text, re.ASCII)
    low, end = (int(found[1]), int(found[2]) + 1) if found else (0, -1)
    if not low <= end <= _END:
        raise CorpusError(
            f"--input-range {text!r} is not of the form LO-HI, two whole numbers from 0 to {_END - 1}, LO not "
            "above HI, such as 1-100"
        )
    return low, end


def _count_bytes(end: int) -> int:
    """Return the bytes of the lines 0 ... ``end`` - 1."""
    digits = len(str(max(end - 1, 0)))
    missing: int = sum(10**length for length in range(1, digits))  # the shorter numbers lack a digit each time
    return end * (digits + 1) - missing
