"""Draws documents from a corpus at random without reading the rest of it: (inputs, seed, size) -> one JSONL file.

The inputs are cut into *cells*: ranges of bytes of plain files of lines, row groups, record batches, shards, else
whole files. Cells are drawn without replacement, all with the same probability, and every document belongs to the cell
that it begins in. So all documents are equally likely, wherever they lie, however long they are. What cannot be cut as
finely as that (a large compressed file, a large row group) is read from its beginning; such inputs are counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from kexue_train.corpus.formats import FORMATS
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.corpus.streams import LentPath, is_pipe
from kexue_train.foundation.counter_rng import Purpose, permute
from kexue_train.foundation.errors import CorpusError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.shuffle.plan import estimate_text_bytes

_MOST_CELLS, _SMALLEST_CELL = 64, 1 << 16
_BLOCK_BYTES = 1 << 18
_SAMPLED_ERROR, _BEGUN_ERROR, _USUAL_ERROR = 1.05, 1.25, 1.5
"""The factors by which the size of the text may be wrong: as sampled, by the beginnings of files, and by usual rates of
compression."""
_NEEDS_ITS_HEAD = ("xz", "lzma")
"""Compressions of which a reader looks at the beginning twice."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of an input that is drawn or not drawn as a whole."""

    source: int
    """Which input."""
    start: int
    end: int | None
    """In the units of the input, as ``read_records`` takes them."""
    input_bytes: float
    """Of the file."""
    limit: int | None
    """Bytes of text after which reading ends; None: where it is a range of bytes, and so small enough."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """The cells that were drawn."""

    cells: tuple[Cell, ...]
    share: float
    """The probability of a cell, and so of a document, of an input of weight 1."""


@dataclass(slots=True)
class Drawn:
    """What came of the cells."""

    documents: int = 0
    text_bytes: int = 0
    blank: int = 0
    repeated: int = 0
    """Documents whose text came before, byte for byte."""
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """The same of records that are no documents by the rules of their format."""
    num_sources: int = 0
    """Inputs from which cells were drawn."""
    begun_sources: int = 0
    """Those of them that were read from their beginning, not at random places."""
    read_whole: dict[tuple[str, str | None], tuple[int, float]] = field(default_factory=dict)
    """(format, compression) -> bytes of text, bytes of input: of the cells that were read to their end."""
    read_begun: dict[tuple[str, str | None], tuple[int, float]] = field(default_factory=dict)
    """The same of beginnings of compressed files."""

    @property
    def records(self) -> int:
        """All that were looked at."""
        return self.documents + self.rejected.total() + self.blank


def draw_cells(sources: Sequence[Source], seed: int, text_bytes: int) -> Drawing:
    """Choose cells that hold about ``text_bytes`` of text, those of an input of weight 2 twice as often.

    Raises:
        CorpusError: If an input can be read only once.
    """
    for source in sources:
        if is_pipe(source.path):
            raise CorpusError(f"{source.path}: is read once, so nothing can be tried beforehand; name a file")
    table, limit = _Table.of(sources), max(text_bytes // _MOST_CELLS, _SMALLEST_CELL)
    while table.reachable(limit) < text_bytes and table.has_larger_cells(limit):
        limit += limit // 8 + 1
    counts = table.count_cells(limit)
    share = min(1.0, text_bytes / max(table.reachable(limit), 1.0))
    cells = []
    for group, weight in enumerate(sorted({source.weight for source in sources})):
        chosen = np.flatnonzero(table.weights == weight)
        ends = np.cumsum(counts[chosen])
        total = int(ends[-1])
        number = min(total, max(1, round(total * min(1.0, share * weight))))
        for position in np.sort(permute(np.arange(number), total, seed, Purpose.TRIAL, group)).tolist():
            place = int(np.searchsorted(ends, position, side="right"))
            index, count = int(chosen[place]), int(counts[chosen[place]])
            cells.append(_cell(index, sources[index], position - (int(ends[place]) - count), count, limit))
    return Drawing(tuple(sorted(cells, key=lambda cell: (cell.source, cell.start))), share)


def write_drawn(
    path: Path, sources: Sequence[Source], drawing: Drawing, options: ReadOptions, progress: Progress = SILENT
) -> Drawn:
    """Write the documents of the cells to ``path`` as JSON Lines, with the kept keys beside ``text``.

    Raises:
        CorpusError: If an input cannot be read, or there is no document in the cells.
    """
    try:
        return _write(path, sources, drawing, options, progress)
    except CorpusError:
        path.unlink()
        raise


def _write(path: Path, sources: Sequence[Source], drawing: Drawing, options: ReadOptions, progress: Progress) -> Drawn:
    drawn, seen, begun = Drawn(), set[int](), set[int]()
    with path.open("w", encoding="utf-8") as file:
        for number, cell in enumerate(drawing.cells, 1):
            source, before, is_whole = sources[cell.source], drawn.text_bytes, True
            with _counted(source) as (counted, packed):
                for block in read_records(counted, _in_small_blocks(options), start=cell.start, end=cell.end):
                    _take(block, options.keep, file.write, drawn, seen)
                    if cell.limit is not None and drawn.text_bytes - before >= cell.limit:
                        is_whole = False
                        break
            if is_whole:
                _add(drawn.read_whole, source, drawn.text_bytes - before, cell.input_bytes)
            else:
                begun.add(cell.source)
                _add(drawn.read_begun, source, drawn.text_bytes - before, packed.num_bytes)
            progress.update(number, len(drawing.cells), "pieces", documents=drawn.documents)
    drawn.num_sources, drawn.begun_sources = len({cell.source for cell in drawing.cells}), len(begun)
    if not drawn.documents:
        reasons = "".join(f", {count:,} {reason}" for reason, count in drawn.rejected.most_common())
        raise CorpusError(
            f"the {len(drawing.cells)} pieces drawn from {len(sources)} inputs hold no document ({drawn.blank:,} blank"
            f"{reasons}); check corpus.inputs, shuffle.text_key and shuffle.format"
        )
    return drawn


def estimate_whole(sources: Sequence[Source], drawn: Drawn) -> tuple[int, int, int]:
    """Return the bytes of text of all inputs: at least, likely and at most; by what was read where that tells."""
    least = likely = most = 0.0
    for source in sources:
        here, error = float(estimate_text_bytes([source])), _USUAL_ERROR
        for found, its_error in ((drawn.read_begun, _BEGUN_ERROR), (drawn.read_whole, _SAMPLED_ERROR)):
            text, size = found.get((source.format, source.compression), (0, 0.0))
            if text and size:
                here, error = source.bytes * source.weight * text / size, its_error
        least, likely, most = least + here / error, likely + here, most + here * error
    return int(least), int(likely), int(most)


def _add(found: dict[tuple[str, str | None], tuple[int, float]], source: Source, text: int, size: float) -> None:
    kind = (source.format, source.compression)
    before = found.get(kind, (0, 0.0))
    found[kind] = (before[0] + text, before[1] + size)


class _Packed:
    """A compressed file; counts what was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.num_bytes = file, 0

    def read(self, size: int, /) -> bytes:
        data = self._file.read(size)
        self.num_bytes += len(data)
        return data


@contextmanager
def _counted(source: Source) -> Iterator[tuple[Source, _Packed]]:
    """Give the input with a count of its compressed bytes; of others, and where that is not possible, it stays 0."""
    reads_forward = FORMATS[source.format].reads_forward and source.compression not in (None, *_NEEDS_ITS_HEAD)
    if not reads_forward or not Path(source.path).is_file():
        yield source, _Packed(BytesIO())
        return
    with Path(source.path).open("rb") as file:
        packed = _Packed(file)
        yield replace(source, path=LentPath(source.path, packed)), packed


def _take(
    block: RecordBlock, keep: Sequence[str], write: Callable[[str], object], drawn: Drawn, seen: set[int]
) -> None:
    drawn.blank += block.blank
    drawn.rejected.update(entry.reason for entry in block.rejected)
    drawn.left_out.update(block.left_out)
    for text, values in zip(block.texts.to_pylist(), _kept(block, keep), strict=True):
        encoded = text.encode()
        digest = xxhash.xxh3_64_intdigest(encoded)
        drawn.documents += 1
        drawn.text_bytes += len(encoded)
        drawn.repeated += digest in seen
        seen.add(digest)
        write(json.dumps({"text": text} | values, ensure_ascii=False) + "\n")


def _kept(block: RecordBlock, keep: Sequence[str]) -> Iterable[dict[str, object]]:
    if block.extras is None:
        return [{}] * len(block.texts)
    return [dict(zip(keep, json.loads(values), strict=True)) for values in block.extras.to_pylist()]


def _in_small_blocks(options: ReadOptions) -> ReadOptions:
    return replace(options, block_bytes=min(options.block_bytes, _BLOCK_BYTES))


def _is_cut_by_bytes(source: Source) -> bool:
    return source.units > 1 and FORMATS[source.format].is_cut_by_bytes


class _Table(NamedTuple):
    """What the inputs hold, one entry for each: shape (n,)."""

    texts: npt.NDArray[np.float64]
    """Estimated bytes of text; 0 if the size is not known."""
    units: npt.NDArray[np.int64]
    is_cut: npt.NDArray[np.bool_]
    """Whether it can be cut anywhere."""
    weights: npt.NDArray[np.float64]

    @classmethod
    def of(cls, sources: Sequence[Source]) -> _Table:
        return cls(
            np.array([estimate_text_bytes([replace(source, weight=1.0)]) for source in sources], np.float64),
            np.array([source.units for source in sources]),
            np.array([_is_cut_by_bytes(source) for source in sources]),
            np.array([source.weight for source in sources], np.float64),
        )

    def count_cells(self, limit: int) -> npt.NDArray[np.int64]:
        """Return into how many cells each input is cut."""
        pieces = np.maximum(np.ceil(self.texts / limit), 1).astype(np.int64)
        return np.where(self.is_cut, pieces, self.units)

    def reachable(self, limit: int) -> float:
        """Return how much text all cells give, if reading a cell ends after ``limit``."""
        cells = self.count_cells(limit)
        return float((cells * np.minimum(self._cell_texts(cells, limit), limit) * self.weights).sum())

    def has_larger_cells(self, limit: int) -> bool:
        """Return whether a larger limit would give more."""
        return bool((self._cell_texts(self.count_cells(limit), limit) > limit).any())

    def _cell_texts(self, cells: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.float64]:
        return np.where(self.texts > 0, self.texts / cells, limit)  # of an unknown size as much as may be read


def _cell(index: int, source: Source, number: int, count: int, limit: int) -> Cell:
    size = source.bytes / count
    if _is_cut_by_bytes(source):
        return Cell(index, source.bytes * number // count, source.bytes * (number + 1) // count, size, None)
    return Cell(index, number, number + 1 if source.units > 1 else None, size, limit)
