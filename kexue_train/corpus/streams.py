"""Opens inputs wherever they lie, plain and compressed; what cannot be read becomes an error that names the file."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from kexue_train.corpus.remote import is_uri, open_remote
from kexue_train.corpus.unpacking import ByteStream, Unpacked
from kexue_train.foundation.errors import CorpusError
from kexue_train.foundation.runtime import format_size

STANDARD_INPUT = "-"
"""The path that stands for it."""
MAX_UNPACKED_BYTES = 16 * 2**30
"""How much of one file is unpacked to disk, where a format cannot be read from front to back."""
_COPY_BYTES = 1 << 20


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


def unreadable(path: Path | str, error: OSError) -> CorpusError:
    """The error for an input that the system does not let us read."""
    return CorpusError(
        f"{path}: cannot be read ({error.strerror}); check the path and its permissions, or leave the file out"
    )


@contextmanager
def _open_raw(path: str) -> Iterator[IO[bytes]]:
    if path == STANDARD_INPUT:
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
