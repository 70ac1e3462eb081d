"""Opens inputs wherever they lie, plain or compressed; what cannot be read becomes an error that names the file.

How far a damaged compressed stream can be read depends on the stream alone, not on who reads it in which steps.
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol, cast

import pyarrow as pa

from kexue_train.corpus.compressed_frames import FrameError, iter_frames
from kexue_train.corpus.remote import is_uri, open_remote
from kexue_train.foundation.errors import CorpusError, DamagedInputError
from kexue_train.foundation.runtime import format_size

# The steps are fixed: what one step loses to damage is the same for any size that is asked for.
_PACKED_BYTES = 16 * 2**10
_ARROW_PACKED_BYTES = 4 * 2**10
_UNPACKED_BYTES = 64 * 2**10
_ARROW_BYTES = 8 * 2**10
BOM = b"\xef\xbb\xbf"
"""The byte order mark some editors put at the start of a file."""
STANDARD_INPUT = "-"
"""The path that stands for it."""
STANDARD_INPUT_NAMES = (STANDARD_INPUT, "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
"""What a user may call it."""
_OPEN_FILES = ("/dev/fd/", "/proc/self/fd/")
"""Where a process sees the files that it was given open; another process sees others there."""
MAX_UNPACKED_BYTES = 16 * 2**30
"""How much of one file is unpacked to disk, where a format cannot be read from front to back."""
_COPY_BYTES = 1 << 20


def is_pipe(path: str) -> bool:
    """Return whether this process alone can read ``path``, and once: the standard input, or a shell's ``<(...)``."""
    return path == STANDARD_INPUT or path.startswith(_OPEN_FILES)


class ByteStream(Protocol):
    """The part of a binary file that the readers need."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes; none at the end."""
        ...


class LentPath(str):
    """The name of an input that is open already, as a member of an archive is, and the stream to read it from."""

    __slots__ = ("stream",)

    def __new__(cls, name: str, stream: ByteStream) -> LentPath:
        """Let ``open_stream`` give ``stream`` for the path ``name``, once."""
        path = super().__new__(cls, name)
        path.stream = stream
        return path

    stream: ByteStream


class Unpacked:
    """The contents of a compressed stream, all its members or frames one after the other."""

    def __init__(self, path: str, raw: ByteStream, compression: str) -> None:
        self._path, self._compression = path, compression
        self._packed = _Packed(raw, _PACKED_BYTES if compression in _UNPACKERS else _ARROW_PACKED_BYTES)
        self._pieces = _pieces(path, self._packed, compression)
        self._rest = b""
        self._num_bytes = 0
        self._damage: DamagedInputError | None = None

    def read(self, size: int) -> bytes:
        """Read ``size`` bytes, fewer before the end and before damage.

        Raises:
            DamagedInputError: Once all that lies before the damage has been read.
            CorpusError: If the data is whole, but needs more than the decoder has: see ``compressed_frames``.
        """
        parts, missing = [], size
        while missing and (self._rest or self._unpack_next()):
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        if not parts and self._damage:
            raise self._damage
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _unpack_next(self) -> bytes:
        try:
            self._rest = next(self._pieces, b"")
        except (EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, FrameError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self._damage = DamagedInputError(
                f"{self._path}: the {self._compression} data is cut off or damaged near byte {self._packed.num_bytes}, "
                f"after {format_size(self._num_bytes)} unpacked ({error}); fetch or make the file again, or leave it "
                "out"
            )
        self._num_bytes += len(self._rest)
        return self._rest


class _Packed:
    """The compressed bytes, counted, in steps that do not depend on how they come in: a pipe gives less than asked."""

    def __init__(self, raw: ByteStream, step: int) -> None:
        self._raw, self._step = raw, step
        self.num_bytes = 0

    def read(self) -> bytes:
        data = self._raw.read(self._step)
        while data and len(data) < self._step and (more := self._raw.read(self._step - len(data))):
            data += more
        self.num_bytes += len(data)
        return data


class _Unpacker(Protocol):
    """One member, as in ``bz2.BZ2Decompressor``."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """Gives zlib the manners of ``bz2.BZ2Decompressor``."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=47)  # a gzip or a zlib header and trailer, both checked

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)


_UNPACKERS: dict[str, Callable[[], _Unpacker]] = {
    "gzip": _Gzip,
    "bz2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
    "lzma": partial(lzma.LZMADecompressor, lzma.FORMAT_ALONE),
}


def _pieces(path: str, packed: _Packed, compression: str) -> Iterator[bytes]:
    """Yield the unpacked bytes in pieces that are not empty."""
    if compression in _UNPACKERS:
        yield from _unpack_members(packed, _UNPACKERS[compression])
        return
    for frame in iter_frames(path, packed, compression):
        stream = pa.CompressedInputStream(pa.PythonFile(frame, mode="r"), compression)
        while piece := stream.read(_ARROW_BYTES):
            yield piece
        frame.skip_rest()


def _unpack_members(packed: _Packed, new_unpacker: Callable[[], _Unpacker]) -> Iterator[bytes]:
    data = packed.read()
    while data:
        unpacker = new_unpacker()
        while not unpacker.eof:
            piece = unpacker.decompress(data, _UNPACKED_BYTES)
            data = b""
            if piece:
                yield piece
            elif not unpacker.eof and unpacker.needs_input:
                data = packed.read()
                if not data:
                    raise EOFError("its end is missing")
        data = unpacker.unused_data.lstrip(b"\0")  # zeros may follow, as tapes and block devices leave them
        while not data and (more := packed.read()):
            data = more.lstrip(b"\0")


@contextmanager
def open_stream(path: str, compression: str | None = None, *, offset: int = 0) -> Iterator[ByteStream]:
    """Open an input for reading from front to back; ``offset`` (of plain files only) is the byte to start at.

    Raises:
        CorpusError: On opening or reading, if the input cannot be read or its compressed data is damaged.
    """
    with _open_raw(path) as raw:
        if offset:
            raw.seek(offset)
        yield Unpacked(path, raw, compression) if compression else raw


@contextmanager
def open_seekable(path: str, compression: str | None = None) -> Iterator[IO[bytes]]:
    """Open an input for reading anywhere in it; one that only goes forward is copied to a temporary file first.

    Raises:
        CorpusError: As ``open_stream``, or if more than ``MAX_UNPACKED_BYTES`` would have to be copied.
    """
    with _open_raw(path) as raw:
        if not compression and raw.seekable():
            yield raw
            return
        with tempfile.TemporaryFile(prefix="kexue-") as copy:
            _copy(path, Unpacked(path, raw, compression) if compression else raw, copy)
            copy.seek(0)
            yield cast("IO[bytes]", copy)


def read_head(path: str, size: int) -> bytes:
    """Return the first ``size`` bytes of an input as they lie there, fewer of a shorter one.

    Of the standard input they may be fewer too, and they stay there to be read.

    Raises:
        CorpusError: If the input cannot be read.
    """
    with _open_raw(path) as raw:
        if path == STANDARD_INPUT:
            return cast("io.BufferedReader", raw).peek(size)[:size]
        return raw.read(size)


def unreadable(path: Path | str, error: OSError) -> CorpusError:
    """Return the error for an input that the system does not let us read."""
    return CorpusError(
        f"{path}: cannot be read ({error.strerror}); check the path and its permissions, or leave the file out"
    )


@contextmanager
def _open_raw(path: str) -> Iterator[IO[bytes]]:
    if isinstance(path, LentPath):
        yield cast("IO[bytes]", path.stream)
    elif path == STANDARD_INPUT:
        if sys.stdin is None:
            raise CorpusError("standard input is closed, so there is nothing to read; leave it open, or name files")
        yield sys.stdin.buffer
    elif is_uri(path):
        with open_remote(path) as remote:
            yield remote
    else:
        try:
            with Path(path).open("rb", buffering=0) as file:
                yield cast("IO[bytes]", file)
        except OSError as error:
            if error.filename == path or error.errno in (5, 21):  # EIO, EISDIR
                raise unreadable(path, error) from None
            raise


def _copy(path: str, stream: ByteStream, copy: Any) -> None:
    num_bytes = 0
    try:
        while data := stream.read(_COPY_BYTES):
            num_bytes += len(data)
            if num_bytes > MAX_UNPACKED_BYTES:
                raise CorpusError(
                    f"{path}: unpacks to more than {format_size(MAX_UNPACKED_BYTES)}, the most that is put into a "
                    f"temporary file in {tempfile.gettempdir()}; unpack it yourself and name the unpacked file"
                )
            copy.write(data)
        copy.flush()
    except OSError as error:
        raise CorpusError(
            f"{path}: cannot be unpacked to a temporary file in {tempfile.gettempdir()} after {format_size(num_bytes)} "
            f"({error.strerror}); free some disk, set TMPDIR to a larger one, or unpack the file yourself"
        ) from None
