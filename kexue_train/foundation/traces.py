"""A command that is refused leaves no trace: what it has made is removed, and folders keep their times."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kexue_train.foundation.artifacts import holds_only_recipe, partial_dir
from kexue_train.foundation.errors import KexueError, MachineLostError, ResourceError


@dataclass(frozen=True)
class Surroundings:
    """What was there of a path before a command."""

    missing: tuple[Path, ...]
    """The path and the folders above it that were not there, the innermost first."""
    folder: Path
    """The innermost folder that was there: the path itself, or one above it."""
    times: tuple[int, int]
    """Of that folder, in nanoseconds."""

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at ``path``, which is a folder or not there."""
        chain = [path, *path.absolute().parents]
        missing = tuple(folder for folder in chain if not os.path.lexists(folder))
        folder = next(folder for folder in chain if folder.is_dir())
        status = folder.stat()
        return cls(missing, folder, (status.st_atime_ns, status.st_mtime_ns))

    def put_back(self) -> None:
        """Remove the folders that were not there, unless they hold something, and set the time of the one that was."""
        with suppress(OSError):  # it is the refusal that counts
            for folder in self.missing:
                if folder.is_dir():
                    folder.rmdir()
            os.utime(self.folder, ns=self.times)


@contextmanager
def untouched_if_refused(out_dir: Path) -> Iterator[None]:
    """Remove what a stage has begun beside ``out_dir`` if it is refused in the block.

    What was begun by an earlier command stays, and so does finished work where the machine lacks something: the same
    command can then go on. After any other refusal, inputs or settings have to change, so nothing could be used again.
    """
    partial = partial_dir(out_dir)
    was_there, around = partial.exists(), Surroundings.of(out_dir.parent)
    try:
        yield
    except KexueError as error:
        is_useless = not isinstance(error, ResourceError | MachineLostError) or holds_only_recipe(partial)
        if error.is_refusal and is_useless and not was_there:
            shutil.rmtree(partial, ignore_errors=True)
            around.put_back()
        raise
