"""The file between the two passes: the rows of one scatter task, grouped by bucket, with an index.

    frame frame ... | frame ...     | ...      | index
    bucket 0          bucket 1                   offset, rows and bytes of every (flush, bucket)

A *flush* empties the writer's buffer and writes all buckets in turn, so the file holds one run of frames for each flush
and bucket, and open files do not grow with the data. A frame has at most a few MB, so a reader needs little memory
however large the buffer was. The rows of a bucket stay in the order they were added in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kexue_train.foundation.arrow_arrays import data_of, lengths_of, offsets_of, values_bytes
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.operating_system import free_range, read_at
from kexue_train.foundation.write_behind import WriteBehindFile
from kexue_train.shuffle.frames import (
    HEADER,
    DamagedFrameError,
    RowSlice,
    body_bytes,
    decode_frame,
    encode_frame,
    read_plain,
)
from kexue_train.shuffle.rows import RowBuffer, Rows, cut_evenly, held_bytes

_FRAME_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class SpillIndex:
    """Where the index of a spill file lies, and its shape."""

    num_flushes: int
    num_buckets: int
    offset: int
    """F·B + 1 offsets, F·B numbers of rows, F·B numbers of bytes begin here, all uint64."""


@dataclass(frozen=True, slots=True)
class SpillTable:
    """A part of the index: n buckets from ``first`` on, an array for each flush."""

    first: int
    offsets: list[npt.NDArray[np.int64]]
    """Shape (n + 1,): bucket i is ``[offsets[i], offsets[i + 1])``."""
    rows: list[npt.NDArray[np.int64]]
    """Shape (n,)."""
    bytes: list[npt.NDArray[np.int64]]
    """Shape (n,): of texts and extras."""

    def frame_ranges(self, bucket: int) -> list[tuple[int, int]]:
        """(start, end) in the file of the frames of a bucket, for each flush."""
        i = bucket - self.first
        return [(int(offsets[i]), int(offsets[i + 1])) for offsets in self.offsets]

    def sizes(self, bucket: int) -> tuple[int, int]:
        """Return the number of rows of a bucket, and the bytes of their texts and extras."""
        i = bucket - self.first
        return sum(int(rows[i]) for rows in self.rows), sum(int(sizes[i]) for sizes in self.bytes)


class SpillWriter:
    """Collects rows by bucket and writes them whenever ``buffer_bytes`` are held.

    Args:
        path: A new file.
        num_buckets: B.
        buffer_bytes: About how much memory to use.
        fits_memory: The page cache has room for the file: it need not be compressed, nor written to disk at once.
    """

    def __init__(self, path: Path, num_buckets: int, buffer_bytes: int, *, fits_memory: bool) -> None:
        self._file = WriteBehindFile(path, is_written_behind=not fits_memory, is_hashed=False)
        self._num_buckets, self._buffer_bytes, self._compress = num_buckets, buffer_bytes, not fits_memory
        self._blocks: list[_GroupedBlock] = []
        self._held_bytes = 0
        self._offsets: list[int] = []
        self._rows: list[int] = []
        self._bytes: list[int] = []

    def add(self, rows: Rows, buckets: npt.NDArray[np.integer]) -> None:
        """Add rows; ``buckets`` of shape (n,) says where each belongs."""
        # Grouped block by block, since a block stays in the processor's cache. Small numbers are sorted faster.
        small = buckets.astype(np.uint16) if self._num_buckets <= 1 << 16 else buckets
        order = np.argsort(small, kind="stable")
        edges = np.searchsorted(small[order], np.arange(self._num_buckets + 1))
        self._blocks.append(_GroupedBlock(rows.take(order), edges))
        self._held_bytes += held_bytes(len(rows), rows.bytes)
        if self._held_bytes >= self._buffer_bytes:
            self._flush()

    def finish(self) -> SpillIndex:
        """Write what is held and the index, and close the file; the system puts it on disk when it sees fit."""
        self._flush()
        offset = self._file.bytes
        self._file.write(np.array([*self._offsets, offset, *self._rows, *self._bytes], "<u8").tobytes())
        self._file.close()
        return SpillIndex(len(self._rows) // self._num_buckets, self._num_buckets, offset)

    def close(self) -> None:
        """Close the file as it is, after an error."""
        self._file.close()

    def _flush(self) -> None:
        if not self._blocks:
            return
        for bucket in range(self._num_buckets):
            self._offsets.append(self._file.bytes)
            pieces = [piece for block in self._blocks for piece in block.pieces(bucket)]
            self._rows.append(sum(piece.num_rows for piece in pieces))
            self._bytes.append(sum(piece.num_bytes for piece in pieces))
            for frame in _cut_frames(pieces):
                self._file.write_parts(encode_frame(frame, compress=self._compress))
        self._blocks, self._held_bytes = [], 0


class _GroupedBlock:
    """Rows sorted by bucket; ``edges`` of shape (B + 1,) are the first rows of the buckets and the end."""

    def __init__(self, rows: Rows, edges: npt.NDArray[np.integer]) -> None:
        self._rows = rows
        self._edges: list[int] = edges.tolist()
        self._text_edges: list[int] = offsets_of(rows.texts)[edges].tolist() if len(rows) else []
        self._lengths = lengths_of(rows.texts).astype("<u4")
        self._data = data_of(rows.texts)

    def pieces(self, bucket: int) -> Iterator[RowSlice]:
        """Yield the rows of a bucket, as pieces that fit into a frame each."""
        low, high = self._edges[bucket], self._edges[bucket + 1]
        if low == high:
            return
        start, end = self._text_edges[bucket], self._text_edges[bucket + 1]
        if end - start <= _FRAME_BYTES:
            yield RowSlice(self._rows, low, high, self._lengths[low:high], self._data[start:end])
            return
        for first, last in cut_evenly(self._lengths[low:high].astype(np.int64), _FRAME_BYTES):
            lengths = self._lengths[low + first : low + last]
            end = start + int(lengths.sum(dtype=np.int64))
            yield RowSlice(self._rows, low + first, low + last, lengths, self._data[start:end])
            start = end


def _cut_frames(pieces: list[RowSlice]) -> Iterator[list[RowSlice]]:
    """Yield the pieces of a bucket in groups for one frame each."""
    frame: list[RowSlice] = []
    held = 0
    for piece in pieces:
        frame.append(piece)
        held += len(piece.texts)
        if held >= _FRAME_BYTES:
            yield frame
            frame, held = [], 0
    if frame:
        yield frame


class SpillReader:
    """Reads some buckets of one spill file."""

    def __init__(self, path: Path, index: SpillIndex) -> None:
        self._path, self._index = path, index
        self._file = path.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def table(self, first: int, stop: int) -> SpillTable:
        """Return where buckets ``[first, stop)`` lie and how large they are."""
        index = self._index
        cells, width = index.num_flushes * index.num_buckets, stop - first

        def read(cell: int, count: int) -> list[npt.NDArray[np.int64]]:
            """Read ``count`` cells of every flush, from the cell of bucket ``first`` on in the array at ``cell``."""
            starts = [cell + flush * index.num_buckets + first for flush in range(index.num_flushes)]
            return [np.frombuffer(self._read(index.offset + 8 * start, 8 * count), "<i8") for start in starts]

        # The index is three arrays of F·B cells, one row of B cells a flush; the offsets have one cell more, the end of
        # the last bucket, so the other two begin one later. With F = 2, B = 3: offsets in cells 0 to 6, rows in 7 to
        # 12, bytes in 13 to 18. A bucket ends where the next begins, hence one offset more than buckets.
        return SpillTable(first, read(0, width + 1), read(cells + 1, width), read(2 * cells + 1, width))

    def frames(self, bucket: int, table: SpillTable | None = None) -> Iterator[Rows]:
        """Yield the rows of a bucket in the order they were added in.

        Raises:
            ArtifactError: If the file is damaged.
        """
        for start, end in (table or self.table(bucket, bucket + 1)).frame_ranges(bucket):
            if end - start <= _FRAME_BYTES:
                yield from iter_raw(self._read(start, end - start), self._path)
                continue
            while start < end:
                header = self._read(start, HEADER.itemsize)
                body = self._read(start + HEADER.itemsize, body_bytes(header))
                yield from iter_raw(header + body, self._path)
                start += len(header) + len(body)

    def load(self, bucket: int, table: SpillTable, buffer: RowBuffer, origin: int) -> None:
        """Put the rows of a bucket into ``buffer``, as rows that come from the scatter task ``origin``.

        Raises:
            ArtifactError: If the file is damaged.
        """
        for start, end in table.frame_ranges(bucket):
            while start < end:
                header = self._read(start, HEADER.itemsize)
                start += HEADER.itemsize
                size = body_bytes(header)
                try:
                    num_rows = read_plain(header, buffer, partial(self._read_into, start))
                    if num_rows is None:
                        rows = decode_frame(header, self._read(start, size))
                        if not buffer.has_room(len(rows), values_bytes(rows.texts)):
                            raise DamagedFrameError
                        buffer.add(rows)
                        num_rows = len(rows)
                except DamagedFrameError:
                    raise _damaged(self._path) from None
                buffer.add_origins(np.full(num_rows, origin, np.uint32))
                start += size

    def is_whole(self) -> bool:
        """Read everything and compare all checksums."""
        try:
            return all(len(rows) for bucket in range(self._index.num_buckets) for rows in self.frames(bucket))
        except (ArtifactError, ValueError):
            return False

    def raw(self, bucket: int, table: SpillTable) -> bytes:
        """Return the frames of a bucket as they lie in the file, for ``iter_raw`` on another machine."""
        return b"".join(self._read(start, end - start) for start, end in table.frame_ranges(bucket))

    def free(self, first: int, stop: int) -> None:
        """Give back the disk space of buckets ``[first, stop)``."""
        table = self.table(first, stop)
        with self._path.open("r+b") as file:
            for offsets in table.offsets:
                free_range(file.fileno(), int(offsets[0]), int(offsets[-1] - offsets[0]))

    def _read_into(self, offset: int, arrays: Sequence[npt.NDArray[Any]]) -> None:
        places = [array.data.cast("B") for array in arrays if array.nbytes]
        while places:
            size = read_at(self._file.fileno(), places, offset)
            if not size:
                raise _damaged(self._path)
            offset += size
            while places and size >= places[0].nbytes:
                size -= places.pop(0).nbytes
            if places:  # a read may be short
                places[0] = places[0][size:]

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        parts = []
        while size:
            part = self._file.read(size)
            if not part:
                raise _damaged(self._path)
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def iter_raw(raw: bytes, path: Path) -> Iterator[Rows]:
    """Yield the rows of frames that ``SpillReader.raw`` read from ``path``.

    Raises:
        ArtifactError: If they are damaged.
    """
    start = 0
    while start < len(raw):
        header = raw[start : start + HEADER.itemsize]
        body = memoryview(raw)[start + HEADER.itemsize : start + HEADER.itemsize + body_bytes(header)]
        try:
            yield decode_frame(header, body)
        except DamagedFrameError:
            raise _damaged(path) from None
        start += len(header) + len(body)


def _damaged(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path}: an intermediate file of the shuffle is damaged or cut off; check that disk, delete the file, then "
        "run the same command again: only what the file held is read again"
    )
