"""Inputs on this machine: files, folders and what a glob finds."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from kexue_train.corpus.folder_lists import LIST_NAMES, FileList, find_list, is_artifact
from kexue_train.corpus.folders import Contents, Reason, reason_of_match
from kexue_train.corpus.streams import unreadable
from kexue_train.foundation.errors import CorpusError


def stat_local(path: Path) -> os.stat_result:
    """Return what the system tells about a file.

    Raises:
        CorpusError: If it tells nothing: a dangling link, a loop of links, a folder without search permission.
    """
    try:
        return path.stat()
    except OSError as error:
        raise unreadable(path, error) from None


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder of this machine; for ``folder_lists.Folder``. Links are followed."""

    path: str
    files: list[str]
    folders: list[str]
    _seen: set[tuple[int, int]]

    def enter(self, name: str) -> LocalFolder | None:
        """Return a folder in it; None if it was entered before, by a link."""
        status = stat_local(Path(self.path, name))
        if (status.st_dev, status.st_ino) in self._seen:
            return None
        return open_folder(Path(self.path, name), self._seen)

    def path_of(self, name: str) -> str:
        """Return the path of something in it."""
        return os.fspath(Path(self.path, name))

    def read(self, name: str) -> bytes:
        """Return the contents of a file in it."""
        try:
            return Path(self.path, name).read_bytes()
        except OSError as error:
            raise unreadable(Path(self.path, name), error) from None


def open_folder(path: Path, seen: set[tuple[int, int]] | None = None) -> LocalFolder:
    """List a folder, and add it to those ``seen``.

    Raises:
        CorpusError: If it cannot be read.
    """
    status, seen = stat_local(path), set() if seen is None else seen
    seen.add((status.st_dev, status.st_ino))
    try:
        with os.scandir(path) as entries:
            names = {entry.name: entry.is_dir() for entry in entries}
    except OSError as error:
        raise unreadable(path, error) from None
    files, folders = (sorted(name for name, is_dir in names.items() if is_dir == wanted) for wanted in (False, True))
    return LocalFolder(os.fspath(path), files, folders, seen)


def expand_local(pattern: str) -> Contents:
    """Return the absolute paths of the files and folders that a path or a glob names.

    A glob does not reach what a folder that lists its files does not list, nor what a stage made unless the glob spells
    the name of its folder: an earlier result among the inputs would be read for more of them.

    Raises:
        CorpusError: If there are none, or a folder cannot be read.
    """
    path = Path(os.path.abspath(Path(pattern).expanduser()))  # noqa: PTH100  # links keep the name the user gave
    if os.path.lexists(path):  # before globbing: a name may hold brackets or stars
        return Contents(pattern, [os.fspath(path)])
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(pattern) else []  # noqa: PTH207  # absolute
    if not matches:
        raise CorpusError(f"{pattern}: no such input file, folder or glob{_nearest(path)}")
    contents, looks = Contents(pattern), _Looks(cache(_is_artifact), cache(_list_of))
    folders: set[Path] = set()
    for match in map(Path, matches):
        if folders.isdisjoint(match.parents):  # else it belongs to what is made of that folder
            contents.add(os.fspath(match), _why_passed_over(match, path, looks))
        if match.is_dir():
            folders.add(match)
    return contents


class _Looks(NamedTuple):
    """What is asked about the folder of every match; the answers are kept while one glob is expanded."""

    is_artifact: Callable[[Path], bool]
    list_of: Callable[[Path], FileList | None]


def _why_passed_over(match: Path, pattern: Path, looks: _Looks) -> Reason | None:
    artifact = next((folder for folder in (match, *match.parents) if looks.is_artifact(folder)), None)
    if artifact is not None and not _is_spelt(artifact, match, pattern):
        return Reason.ARTIFACT
    if match.is_dir():
        return None
    return reason_of_match(match.name, looks.list_of(match.parent))


def _is_spelt(folder: Path, match: Path, pattern: Path) -> bool:
    """Return whether the name of a folder at or above ``match`` stands in ``pattern`` as it is."""
    below, parts = len(match.parts) - len(folder.parts), pattern.parts
    after_stars = len(parts) - max((index for index, part in enumerate(parts) if part == "**"), default=-1) - 1
    if below < after_stars:  # counted from the end
        return not glob.has_magic(parts[-1 - below])
    return not any(glob.has_magic(part) for part in parts[: len(folder.parts)])


def find_unlisted(paths: Iterable[str]) -> list[str]:
    """Return those of some files of this machine that lie in a folder that lists others as its own."""
    by_folder: dict[Path, list[str]] = {}
    for path in map(Path, paths):
        by_folder.setdefault(path.parent, []).append(path.name)
    found = []
    for parent, names in by_folder.items():
        if any((parent / name).is_file() for name in LIST_NAMES):  # else a large folder need not be listed
            with suppress(CorpusError):  # what is wrong with the folder does not concern a file that is named
                listed = _list_of(parent)
                found += [os.fspath(parent / n) for n in names if reason_of_match(n, listed) is Reason.UNLISTED]
    return found


def _is_artifact(folder: Path) -> bool:
    return folder.is_dir() and is_artifact(open_folder(folder))


def _list_of(folder: Path) -> FileList | None:
    return find_list(open_folder(folder))


def would_name(pattern: str, path: Path) -> bool:
    """Return whether a folder or glob would name a data file that were made at ``path``, which is absolute."""
    place = Path(os.path.abspath(Path(pattern).expanduser()))  # noqa: PTH100  # as in ``expand_local``
    if place.is_dir():
        between = [folder for folder in path.parents if folder == place or place in folder.parents]
        is_visible = not any(part.startswith(".") for part in path.parts[len(place.parts) :])
        return bool(between) and is_visible and not any(map(_has_own_list, between))
    return glob.has_magic(pattern) and _matches(path.parts, place.parts)


def _has_own_list(folder: Path) -> bool:
    return folder.is_dir() and find_list(open_folder(folder)) is not None


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not parts or not pattern:
        return not parts and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts)))
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _nearest(path: Path) -> str:
    folder = path.parent
    names = [child.name for child in folder.iterdir()] if folder.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {folder / near[0]}?"
    return "; check the path" if folder.is_dir() else f"; the folder {folder} does not exist"
