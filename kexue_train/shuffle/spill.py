"""The file between the two passes: the rows of one scatter task, grouped by bucket, with an index.

    frame frame ... | frame ...     | ...      | index
    bucket 0          bucket 1                   offset, rows and bytes of every (flush, bucket)

A *flush* empties the writer's buffer and writes all buckets in turn, so the file holds one run of frames for each flush
and bucket, and open files do not grow with the data. A frame has at most a few MB, so a reader needs little memory
however large the buffer was. The rows of a bucket stay in the order they were added in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from kexue_train.errors import ArtifactError
from kexue_train.shuffle.frames import HEADER, DamagedFrameError, Slice, body_bytes, decode_frame, encode_frame
from kexue_train.shuffle.rows import Rows, cut_evenly, offsets_of
from kexue_train.write_behind import WriteBehindFile, free_range

_FRAME_BYTES = 4 * 2**20
_HELD_ROW_BYTES = 20  # key, offset and what numbers of it there are


@dataclass(frozen=True, slots=True)
class SpillIndex:
    """Where the index of a spill file lies, and its shape."""

    num_flushes: int
    num_buckets: int
    offset: int
    """F·B + 1 offsets, F·B numbers of rows, F·B numbers of bytes begin here, all uint64."""


class SpillWriter:
    """Collects rows by bucket and writes them whenever ``buffer_bytes`` are held.

    Args:
        path: A new file.
        num_buckets: B.
        buffer_bytes: About how much memory to use.
        fits_memory: The page cache has room for the file: it need not be compressed, nor written to disk at once.
    """

    def __init__(self, path: Path, num_buckets: int, buffer_bytes: int, *, fits_memory: bool) -> None:
        self._file = WriteBehindFile(path, is_written_behind=not fits_memory)
        self._num_buckets, self._buffer_bytes, self._compress = num_buckets, buffer_bytes, not fits_memory
        self._held: list[tuple[Rows, list[int]]] = []
        self._held_bytes = 0
        self._offsets: list[int] = []
        self._rows: list[int] = []
        self._bytes: list[int] = []

    def add(self, rows: Rows, buckets: npt.NDArray[np.integer]) -> None:
        """Add rows; ``buckets`` of shape (n,) says where each belongs."""
        small = buckets.astype(np.uint16) if self._num_buckets <= 1 << 16 else buckets  # sorted ten times as fast
        order = np.argsort(small, kind="stable")
        edges = np.searchsorted(small[order], np.arange(self._num_buckets + 1))
        self._held.append((rows.take(order), edges.tolist()))
        self._held_bytes += rows.bytes + _HELD_ROW_BYTES * len(rows)
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
        if not self._held:
            return
        for bucket in range(self._num_buckets):
            parts = [Slice(rows, edges[bucket], edges[bucket + 1]) for rows, edges in self._held]
            self._offsets.append(self._file.bytes)
            self._rows.append(sum(part.high - part.low for part in parts))
            self._bytes.append(sum(map(self._write_frame, _cut_frames(parts))))
        self._held, self._held_bytes = [], 0

    def _write_frame(self, parts: list[Slice]) -> int:
        buffers, num_bytes = encode_frame(parts, compress=self._compress)
        self._file.write(b"".join(buffers))
        return num_bytes


def _cut_frames(parts: list[Slice]) -> Iterator[list[Slice]]:
    """The rows of a bucket in groups for one frame each."""
    frame: list[Slice] = []
    held = 0
    for part in parts:
        for piece in _cut_slice(part):
            frame.append(piece)
            held += piece.text_bytes
            if held >= _FRAME_BYTES:
                yield frame
                frame, held = [], 0
    if frame:
        yield frame


def _cut_slice(part: Slice) -> Iterator[Slice]:
    """The rows of ``part`` in slices for one frame at most; none if it has none."""
    if part.low == part.high:
        return
    if part.text_bytes <= _FRAME_BYTES:
        yield part
        return
    lengths = np.diff(offsets_of(part.rows.texts)[part.low : part.high + 1])
    for start, stop in cut_evenly(lengths, _FRAME_BYTES):
        yield Slice(part.rows, part.low + start, part.low + stop)


class SpillReader:
    """Reads some buckets of one spill file."""

    def __init__(self, path: Path, index: SpillIndex) -> None:
        self._path, self._index = path, index
        self._file = path.open("rb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def sizes(self, bucket: int) -> tuple[int, int]:
        """Rows of a bucket, and bytes of their texts and extras."""
        cells = self._index.num_flushes * self._index.num_buckets
        places = range(bucket, cells, self._index.num_buckets)
        rows, num_bytes = (
            sum(int(self._numbers(first + place, 1)[0]) for place in places) for first in (cells + 1, 2 * cells + 1)
        )
        return rows, num_bytes

    def frames(self, bucket: int) -> Iterator[Rows]:
        """The rows of a bucket in the order they were added in.

        Raises:
            ArtifactError: If the file is damaged.
        """
        for start, end in self._places(bucket, bucket + 1):
            while start < end:
                header = self._read(start, HEADER.itemsize)
                body = self._read(start + HEADER.itemsize, body_bytes(header))
                yield self._decode(header, body)
                start += len(header) + len(body)

    def is_whole(self) -> bool:
        """Read everything and compare all checksums."""
        try:
            return all(len(rows) for bucket in range(self._index.num_buckets) for rows in self.frames(bucket))
        except (ArtifactError, ValueError):
            return False

    def raw(self, bucket: int) -> bytes:
        """The frames of a bucket as they lie in the file, for ``iter_raw`` on another machine."""
        return b"".join(self._read(start, end - start) for start, end in self._places(bucket, bucket + 1))

    def free(self, first: int, stop: int) -> None:
        """Give back the disk space of buckets ``[first, stop)``."""
        with self._path.open("r+b") as file:
            for start, end in self._places(first, stop):
                free_range(file.fileno(), start, end - start)

    def _places(self, first: int, stop: int) -> list[tuple[int, int]]:
        """(start, end) of the frames of buckets ``[first, stop)`` for each flush."""
        index = self._index
        edges = [
            self._numbers(flush * index.num_buckets + first, stop - first + 1) for flush in range(index.num_flushes)
        ]
        return [(int(edge[0]), int(edge[-1])) for edge in edges]

    def _numbers(self, place: int, count: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._read(self._index.offset + 8 * place, 8 * count), "<u8")

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

    def _decode(self, header: bytes, body: bytes) -> Rows:
        try:
            return decode_frame(header, body)
        except DamagedFrameError:
            raise _damaged(self._path) from None


def iter_raw(raw: bytes, path: Path) -> Iterator[Rows]:
    """The rows of frames that ``SpillReader.raw`` read from ``path``.

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
        "run the same command again: only what the file held is read anew"
    )
