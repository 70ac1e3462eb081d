"""Turns what a user writes for an input (a path, folder, glob, URI or list of them) into the paths it stands for."""

from __future__ import annotations

import difflib
import fnmatch
import glob
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from kexue_train.corpus.folders import Contents, choose_files, choose_matches
from kexue_train.corpus.formats import allowed_suffixes
from kexue_train.corpus.hub import HUB, other_splits
from kexue_train.corpus.local_files import expand_local, find_unlisted, open_folder, would_name
from kexue_train.corpus.remote import RemoteFolder, expand_remote, is_uri
from kexue_train.corpus.streams import STANDARD_INPUT, STANDARD_INPUT_NAMES, is_pipe, unreadable
from kexue_train.foundation.credentials import without_credentials
from kexue_train.foundation.errors import CorpusError

_LOCAL = "file://"
_MAX_NAMES = 3
Note = Callable[[str], None]
"""Takes a line about the inputs that a person should see."""


def weigh_paths(patterns: Sequence[str], format: str, weights: Mapping[str, float], note: Note) -> dict[str, float]:
    """Return every path that ``patterns`` stand for -> its weight; what is not read is told to ``note``.

    Raises:
        CorpusError: If a pattern stands for nothing, a weight is wrong or for no pattern, or a path has two weights.
    """
    _check_weights(patterns, weights)
    chosen: dict[str, float] = {}
    repeated: list[str] = []
    for pattern in patterns:
        weight = weights.get(pattern, 1.0)
        for path in _expand(pattern, format, note):
            if path in chosen:
                repeated.append(path)
            if chosen.setdefault(path, weight) != weight:
                raise two_weights(path, weight, chosen[path])
    if repeated:
        note(f"named more than once, and read once: {some_of(repeated)}")
    if unlisted := find_unlisted(pattern for pattern in map(os.path.abspath, patterns) if pattern in chosen):
        note(f"read as it is named, though its folder lists other files: {some_of(unlisted)}")
    return chosen


def some_of(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _MAX_NAMES:,} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


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


def check_not_among_inputs(out: Path, patterns: Sequence[str]) -> None:
    """Refuse to make a file of data where one of ``patterns`` would find it the next time.

    Raises:
        CorpusError: If one would; a file that is an input by its own name is none of this function's business.
    """
    lines = [line for pattern in patterns for line in (_read_list(pattern) if pattern.startswith("@") else [pattern])]
    for pattern in lines:
        is_local = pattern not in STANDARD_INPUT_NAMES and not pattern.startswith(HUB)
        if is_local and (path := _local_path(pattern)) is not None and would_name(path, out.absolute()):
            raise CorpusError(
                f"{out}: the output would lie among the inputs, where {pattern} would find it the next time and read "
                "it for more of them; write it elsewhere, or name the input files one by one"
            )


def was_named_by(name: str, pattern: str) -> bool:
    """Return whether ``pattern`` names or named a file, which may be gone: as it is, by a folder above it or by a glob.

    Args:
        name: As a manifest has it: an absolute path or URI; or folder/file for a file of another artifact.
        pattern: What a user wrote for an input.
    """
    if pattern.startswith("@"):
        return Path(pattern[1:]).expanduser().exists() and any(was_named_by(name, line) for line in _read_list(pattern))
    name, pattern = without_credentials(name), without_credentials(pattern)
    local = _local_path(pattern)
    whole = pattern.rstrip("/") if local is None else os.path.abspath(Path(local).expanduser())  # noqa: PTH100
    if not is_uri(name) and not Path(name).is_absolute():
        return f"{whole}/".endswith((f"/{name}/", f"/{PurePosixPath(name).parent}/"))
    above = [name, *map(str, Path(name).parents)] if local is not None else [name, *_folders_of_uri(name)]
    return any(whole == path or fnmatch.fnmatchcase(path, whole) for path in above)


def _folders_of_uri(uri: str) -> list[str]:
    scheme, _, path = uri.partition("://")
    return [f"{scheme}://{folder}" for folder in PurePosixPath(path).parents if folder.name]


def _local_path(pattern: str) -> str | None:
    """Return the path or glob that a pattern is; None if it is the URI of something elsewhere."""
    if pattern.startswith(_LOCAL):
        return unquote(pattern.removeprefix(_LOCAL))
    return None if is_uri(pattern) else pattern


def _expand(pattern: str, format: str, note: Note) -> Iterator[str]:
    if pattern.startswith("@"):
        for line in _read_list(pattern):
            yield from _expand(line, format, note)
    elif pattern in STANDARD_INPUT_NAMES:
        yield STANDARD_INPUT
    elif pattern.startswith(HUB):
        if others := other_splits(pattern):
            note(f"{pattern}: not read: {some_of(others)} (other splits: name one with {pattern}:SPLIT)")
        yield pattern
    elif is_pipe(pattern):
        yield pattern
    elif (path := _local_path(pattern)) is None:
        match expand_remote(pattern):
            case str() as uri:
                yield uri
            case RemoteFolder() as folder:
                yield from _choose(choose_files(folder, format), note)
            case found:
                yield from _choose(choose_matches(pattern, found), note)
    else:
        matches = _choose(expand_local(path), note)
        for name in matches:
            if not Path(name).is_dir():
                yield name
            else:
                contents = choose_files(open_folder(Path(name)), format)
                yield from _choose(contents, note, may_be_empty=len(matches) > 1)


def _choose(contents: Contents, note: Note, *, may_be_empty: bool = False) -> list[str]:
    """Return the data of a folder or glob, and tell what else is there."""
    rest = contents.describe_rest()
    if not contents.data and not may_be_empty:
        raise CorpusError(
            f"{contents.name}: holds no data file{f'; not read: {rest}' if rest else ''}; expected "
            f"{allowed_suffixes()}, or say what the files are with --format"
        )
    if rest:
        note(f"{contents.name}: not read: {rest}")
    return contents.data


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
    return [_beside(path, line) for line in lines if line.strip()]


def _beside(file: Path, line: str) -> str:
    """Return a line of the list ``file``, from its folder if it is relative and the current folder has no such file."""
    path = None if line in STANDARD_INPUT_NAMES or line.startswith(HUB) else _local_path(line)
    if path is None or Path(path).expanduser().is_absolute() or _is_there(path):
        return line
    return str(beside) if _is_there(beside := str(file.parent.absolute() / path)) else line


def _is_there(path: str) -> bool:
    return os.path.lexists(path) or (glob.has_magic(path) and any(glob.iglob(path, recursive=True)))  # noqa: PTH207
