"""Turns what a user writes for an input (a path, folder, glob, URI or list of them) into the paths it stands for."""

from __future__ import annotations

import difflib
import glob
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote

from kexue_train.corpus.formats import allowed_suffixes, split_suffixes
from kexue_train.corpus.hub import HUB
from kexue_train.corpus.remote import expand_remote, is_uri
from kexue_train.corpus.streams import STANDARD_INPUT, STANDARD_INPUT_NAMES, is_pipe, unreadable
from kexue_train.foundation.errors import CorpusError

_LOCAL = "file://"
_DESCRIPTIONS = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", "manifest.json", "state.json"}
"""Files beside the data of a folder that tell about it; named by themselves they are read like any other."""


def expand_local(pattern: str, is_data: Callable[[str], bool]) -> list[Path]:
    """Return the absolute paths that ``pattern`` names; of a folder, those whose name ``is_data`` allows.

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
    """Return what the system tells about a file.

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
        raise CorpusError(
            f"{folder}: holds no data file; expected {allowed_suffixes()}, or say what the files are with --format"
        )
    return names


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield every file below ``folder`` that is not hidden; links are followed, each folder is entered once."""
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


def weigh_paths(patterns: Sequence[str], format: str, weights: Mapping[str, float]) -> dict[str, float]:
    """Return every path that ``patterns`` stand for -> its weight.

    Raises:
        CorpusError: If a pattern stands for nothing, a weight is wrong or for no pattern, or a path has two weights.
    """
    _check_weights(patterns, weights)
    chosen: dict[str, float] = {}
    for pattern in patterns:
        weight = weights.get(pattern, 1.0)
        for path in _expand(pattern, format):
            if chosen.setdefault(path, weight) != weight:
                raise two_weights(path, weight, chosen[path])
    return chosen


def two_weights(path: str, weight: float, other: float) -> CorpusError:
    """Return the error for a file that is to count in two ways."""
    return CorpusError(
        f"{path}: is named by inputs of the weights {other:g} and {weight:g}; give both the same, or name it once"
    )


def _check_weights(patterns: Sequence[str], weights: Mapping[str, float]) -> None:
    for pattern, weight in weights.items():
        if pattern not in patterns:
            near = difflib.get_close_matches(pattern, patterns, n=1, cutoff=0.0)
            raise CorpusError(f"the weight {weight:g} is for {pattern}, which is not an input; did you mean {near[0]}?")
        if not (math.isfinite(weight) and weight > 0):
            raise CorpusError(f"{pattern}: the weight {weight:g} is not above 0 and finite; leave the input out for 0")


def _expand(pattern: str, format: str) -> Iterator[str]:
    def is_data(name: str) -> bool:
        return format != "auto" or (split_suffixes(name)[0] is not None and name not in _DESCRIPTIONS)

    if pattern.startswith("@"):
        for line in _read_list(pattern):
            yield from _expand(line, format)
    elif pattern in STANDARD_INPUT_NAMES:
        yield STANDARD_INPUT
    elif is_pipe(pattern) or pattern.startswith(HUB):
        yield pattern
    elif is_uri(pattern) and not pattern.startswith(_LOCAL):
        yield from expand_remote(pattern, is_data)
    else:
        path = unquote(pattern.removeprefix(_LOCAL)) if pattern.startswith(_LOCAL) else pattern
        yield from map(os.fspath, expand_local(path, is_data))


def _read_list(pattern: str) -> list[str]:
    """Return the patterns in the file that is named after the ``@``."""
    path = Path(pattern[1:]).expanduser()
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: the list of inputs is not UTF-8 at byte {error.start}; write it as UTF-8") from None
    except OSError as error:
        raise unreadable(path, error) from None
    lines = [line.removesuffix("\r") for line in lines]
    for number, line in enumerate(lines, start=1):
        if line.startswith("@"):
            raise CorpusError(f"{path}:{number}: {line} is a list within a list; write its lines here instead")
    if not any(line.strip() for line in lines):
        raise CorpusError(f"{path}: the list of inputs is empty; write one file, folder, glob or URI on each line")
    return [line for line in lines if line.strip()]
