"""Where a shuffle into one file goes: a file that gets its name when it is whole, or the standard output."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from kexue_train.foundation.errors import ConfigError, InterruptedOutputError, ResourceError

STANDARD_OUTPUT = "-"
_NAMES = {STANDARD_OUTPUT, "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"}
_COPY_BYTES = 4 * 2**20


def is_standard_output(out: str) -> bool:
    """Return whether ``out`` means the standard output, by any of its names."""
    return out in _NAMES


class Destination(Protocol):
    """Takes the bytes of the result in order."""

    is_resumable: bool
    """Whether what was written is kept when the process ends."""

    def keep(self, num_bytes: int) -> Iterator[bytes]:
        """Yield so many bytes of what an interrupted run wrote, and forget what it wrote after them."""
        ...

    def write(self, data: bytes, /) -> None:
        """Append all of ``data``."""
        ...

    def sync(self) -> None:
        """Return once everything is on disk, or handed on."""
        ...


class FileDestination:
    """A file that is written aside; whoever opened it gives it its name."""

    is_resumable = True

    def __init__(self, file: IO[bytes]) -> None:
        """Take a file that is open for appending and reading."""
        self._file = file

    def keep(self, num_bytes: int) -> Iterator[bytes]:
        """Yield so many bytes of what an interrupted run wrote, and forget what it wrote after them."""
        self._file.truncate(num_bytes)
        self._file.seek(0)
        while data := self._file.read(_COPY_BYTES):
            yield data

    def write(self, data: bytes, /) -> None:
        """Append all of ``data``."""
        self._file.write(data)

    def sync(self) -> None:
        """Return once everything is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())


class StandardOutput:
    """The standard output, without a buffer, so that an error comes with the data that it is about."""

    is_resumable = False

    def __init__(self) -> None:
        """Find the standard output.

        Raises:
            ConfigError: If it is closed.
        """
        if sys.stdout is None:
            raise ConfigError(
                "standard output is closed, so there is nowhere to write; leave it open, or give a file with --out"
            )
        sys.stdout.flush()
        self._descriptor = sys.stdout.fileno()

    def keep(self, num_bytes: int) -> Iterator[bytes]:  # noqa: ARG002  # always 0
        """Yield nothing: what went out before is gone."""
        yield from ()

    def write(self, data: bytes, /) -> None:
        """Write all of ``data``.

        Raises:
            ResourceError: If the system does not take it.
            BrokenPipeError: If nobody reads any more.
        """
        left: Any = memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise ResourceError(
                f"standard output: cannot be written any further ({error.strerror}); make room where it leads, or send "
                "it elsewhere, then run the command again from the start"
            ) from None

    def sync(self) -> None:
        """Do nothing: no data is held back."""


@contextmanager
def temporary_folder(parent: str | None) -> Iterator[Path]:
    """Make a folder for the work of a shuffle that leaves nothing behind; an interrupt or a full disk says so.

    Args:
        parent: Where to make it; None: the system's place for temporary files, which TMPDIR names.

    Raises:
        InterruptedOutputError: If the work inside is interrupted.
        ResourceError: If the system does not let files be written there.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="kexue-", dir=parent) as folder:
            yield Path(folder)
    except KeyboardInterrupt:
        raise InterruptedOutputError(
            "stopped before the end: what standard output received is a part, and nothing is kept to resume from"
        ) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ResourceError(
            f"{parent or tempfile.gettempdir()}: temporary files cannot be written there ({error.strerror}); make "
            "room, or name another folder with --spill or TMPDIR, then run the command again from the start"
        ) from None
