"""Finds the files that a path, folder or glob of this machine names."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kexue_train.corpus.formats import SUFFIXES
from kexue_train.corpus.streams import unreadable
from kexue_train.foundation.errors import CorpusError


def expand_local(pattern: str, is_data: Callable[[str], bool]) -> list[Path]:
    """The absolute paths that ``pattern`` names; of a folder, those whose name ``is_data`` allows.

    Raises:
        CorpusError: If there are none, or a folder cannot be read.
    """
    path = Path(os.path.abspath(Path(pattern).expanduser()))  # noqa: PTH100  # links keep the name the user gave
    if path.is_dir():
        return _expand_folder(path, is_data)
    if os.path.lexists(path):  # before globbing: a name may hold brackets or stars
        return [path]
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(pattern) else []  # noqa: PTH207  # absolute
    if not matches:
        raise CorpusError(f"{pattern}: no such input file, folder or glob{_nearest(path)}")
    return [
        file for match in matches for file in (expand_local(match, is_data) if Path(match).is_dir() else [Path(match)])
    ]


def stat_local(path: Path) -> os.stat_result:
    """What the system tells about a file.

    Raises:
        CorpusError: If it tells nothing: a dangling link, a loop of links, a folder without search permission.
    """
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from None


def _expand_folder(folder: Path, is_data: Callable[[str], bool]) -> list[Path]:
    names = [path for path in _walk(folder, set()) if is_data(path.name)]
    if not names:
        raise CorpusError(f"{folder}: holds no data file; expected {SUFFIXES}, or say what the files are with --format")
    return names


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Every file below ``folder`` that is not hidden; links are followed, each folder is entered once."""
    status = stat_local(folder)
    if (status.st_dev, status.st_ino) in seen:
        return
    seen.add((status.st_dev, status.st_ino))
    try:
        children = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None
    for child in children:
        if child.name.startswith("."):
            continue
        if child.is_dir():
            yield from _walk(child, seen)
        else:
            yield child


def _nearest(path: Path) -> str:
    folder = path.parent
    names = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {folder / near[0]}?"
    return "; check the path" if folder.is_dir() else f"; the folder {folder} does not exist"
