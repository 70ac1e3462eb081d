"""Where a shuffle into one file goes: a file that gets its name when it is whole, or the standard output."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

from kexue_train.corpus.formats import FORMATS
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.remote import is_uri
from kexue_train.corpus.streams import is_pipe
from kexue_train.foundation.artifacts import Recipe, open_partial
from kexue_train.foundation.errors import ArtifactError, ConfigError, InterruptedOutputError, ResourceError
from kexue_train.foundation.progress import Progress
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import explain_full_disk

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
        temporary = tempfile.TemporaryDirectory(prefix="kexue-", dir=parent)
    except OSError as error:
        raise _no_room(parent, error) from None
    with temporary as folder:
        try:
            yield Path(folder)
        except KeyboardInterrupt:
            raise InterruptedOutputError(
                "stopped before the end: what standard output received is a part, and nothing is kept to resume from"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _no_room(parent, error) from None


def _no_room(parent: str | None, error: OSError) -> ResourceError:
    return ResourceError(
        f"{parent or tempfile.gettempdir()}: temporary files cannot be written there ({error.strerror}); make room, or "
        "name another folder with --spill or TMPDIR, then run the command again from the start"
    )


def path_to_write(out: str, sources: Sequence[Source], *, raw: bool) -> Path:
    """Return the path of the file to make or, if it is an input, to replace."""
    path = Path(out)
    if not (path.exists() or path.is_symlink()):
        return path
    is_input = path.exists() and any(Path(source.path).samefile(path) for source in sources if _is_local(source))
    if is_input and raw:
        return path.resolve()
    if is_input:
        raise ArtifactError(
            f"{path}: is an input, and only lines of text can be shuffled in place, as other records may hold more "
            "than is written; choose another file with --out"
        )
    raise ArtifactError(f"{path}: already exists and is not overwritten; delete it, or choose another file with --out")


def _is_local(source: Source) -> bool:
    return bool(FORMATS[source.format].suffixes) and not (is_pipe(source.path) or is_uri(source.path))


@contextmanager
def open_destination(
    config: ShuffleConfig, path: Path | None, recipe: Recipe, progress: Progress
) -> Iterator[tuple[Destination, Path]]:
    """Open what to write to, the standard output without a ``path``, and a folder to work in."""
    if path is None:
        if config.on_bad_record == "skip" or config.keep_dropped:
            raise ConfigError(
                "rejected and dropped records are kept in files next to the output, and standard output has no folder; "
                "give a file or folder with --out"
            )
        destination = StandardOutput()
        with temporary_folder(config.spill) as folder:
            yield destination, folder
        return
    with explain_full_disk(path):
        folder = open_partial(path, recipe, progress)
        with (folder / "out").open("a+b") as file:
            yield FileDestination(file), folder
