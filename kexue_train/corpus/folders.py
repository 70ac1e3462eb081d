"""Which files of a folder are its data, and what is said of all others.

A folder that lists its own files is read by its list. Of any other folder those are data whose name tells a known
format, or which have no telling suffix and whose content leaves no doubt.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from kexue_train.corpus.content import tell_format
from kexue_train.corpus.folder_lists import (
    DESCRIPTIONS,
    FileList,
    Folder,
    check_list,
    check_no_table,
    find_list,
    is_artifact,
)
from kexue_train.corpus.formats import inner_suffix, is_archive, is_packed, split_suffixes

_LEFTOVER = re.compile(r"cache-[0-9a-f]{16}.*\.arrow|_temporary/|.*\.incomplete/|_SUCCESS")
"""Caches of ``datasets``, unfinished work of it and of Spark; a folder has a slash at its end."""
_KEPT_ASIDE = re.compile(r"\.(rejected|dropped)\.jsonl$")
"""The end of the name of what a shuffle into a single file keeps aside, after the name of that file."""
_MAX_NAMES, _MAX_SUFFIXES = 3, 5
"""So many names are told, else so many suffixes with their counts."""


class Reason(Enum):
    """Why something in a folder is not read; its value is what is said of it, and what to do."""

    HIDDEN = "hidden", ""
    PACKED = "packed", "to be unpacked first"
    ARCHIVE = "archives", "read only by name"
    ARTIFACT = "made by kexue_train", "read only by name"
    UNLISTED = "not in the list of its folder", ""
    LEFTOVER = "left by other programs", ""
    DESCRIPTION = "describing the data", "read only by name"
    UNKNOWN = "of unknown format", "read only with --format"


@dataclass(slots=True)
class Contents:
    """What a folder holds, or what a glob finds."""

    name: str
    """The folder or the glob."""
    data: list[str] = field(default_factory=list)
    """Paths of its data."""
    passed_over: dict[Reason, list[str]] = field(default_factory=dict)
    """All others, by their names in the folder; those of folders, which count as one, end in a slash."""

    def add(self, name: str, reason: Reason | None) -> None:
        """Take the path of a file of data (with None), or the name of anything else with the reason."""
        if reason is None:
            self.data.append(name)
        else:
            self.passed_over.setdefault(reason, []).append(name)

    def describe_rest(self) -> str:
        """Return in one line what is not read; empty if all is."""
        return "; ".join(_describe(reason, self.passed_over[reason]) for reason in Reason if reason in self.passed_over)


def choose_files(folder: Folder, format: str) -> Contents:
    """Return which files below ``folder`` are its data.

    Args:
        folder: The folder that was named.
        format: What its files are; ``auto`` goes by their names.

    Raises:
        CorpusError: If a listed file is missing, several splits are there to choose from, or the folder holds no
            documents by its own account.
    """
    contents = Contents(folder.path)
    for name, reason in _classify(folder, format, prefix=""):
        contents.add(name, reason)
    return contents


def choose_matches(pattern: str, matches: Iterable[tuple[Folder, Sequence[str]]]) -> Contents:
    """Return which of the files that a glob finds in some folders are their own data."""
    contents = Contents(pattern)
    for folder, names in matches:
        listed = find_list(folder)
        for name in names:
            contents.add(folder.path_of(name), reason_of_match(name, listed))
    return contents


def reason_of_match(name: str, listed: FileList | None) -> Reason | None:
    """Return why a file that a glob finds in a folder is not read; None if it is."""
    if name in DESCRIPTIONS:
        return Reason.DESCRIPTION
    return Reason.UNLISTED if listed is not None and name not in listed.files else None


def _classify(folder: Folder, format: str, prefix: str) -> Iterator[tuple[str, Reason | None]]:
    """Yield the path of each data file with None, and the name of anything else with the reason."""
    check_no_table(folder)
    listed = find_list(folder)
    if listed is None:
        yield from _by_names(folder, format, prefix)
        return
    check_list(folder, listed)
    for name in folder.files:
        if name in listed.files:
            is_known = format != "auto" or split_suffixes(name)[0] is not None
            yield (folder.path_of(name), None) if is_known else (f"{prefix}{name}", Reason.UNKNOWN)
        elif name not in DESCRIPTIONS and name != listed.name:
            yield f"{prefix}{name}", Reason.UNLISTED
    for name in folder.folders:
        if name not in listed.folders:
            yield f"{prefix}{name}/", Reason.UNLISTED
        elif entered := folder.enter(name):
            yield from _classify(entered, format, f"{prefix}{name}/")


def _by_names(folder: Folder, format: str, prefix: str) -> Iterator[tuple[str, Reason | None]]:
    for name in folder.files:
        reason = _reason_of(folder, name, format)
        yield (folder.path_of(name), None) if reason is None else (f"{prefix}{name}", reason)
    for name in folder.folders:
        if name.startswith("."):
            yield f"{prefix}{name}/", Reason.HIDDEN
        elif _LEFTOVER.fullmatch(f"{name}/"):
            yield f"{prefix}{name}/", Reason.LEFTOVER
        elif entered := folder.enter(name):
            if is_artifact(entered):
                yield f"{prefix}{name}/", Reason.ARTIFACT
            else:
                yield from _classify(entered, format, f"{prefix}{name}/")


def _reason_of(folder: Folder, name: str, format: str) -> Reason | None:
    """Return why a file of a folder without list is not read; None if it is."""
    if name.startswith("."):
        return Reason.HIDDEN
    if _LEFTOVER.fullmatch(name):
        return Reason.LEFTOVER
    if (written := _KEPT_ASIDE.sub("", name)) != name and written in folder.files:
        return Reason.ARTIFACT
    if is_packed(name):
        return Reason.PACKED
    known = split_suffixes(name)[0]
    if format == "auto" and known is None and _may_tell(name):
        known = tell_format(folder.path_of(name))[0]
    if is_archive(known) and format != known:
        return Reason.ARCHIVE
    if format != "auto":
        return None
    if name in DESCRIPTIONS:
        return Reason.DESCRIPTION
    return Reason.UNKNOWN if known is None else None


def _may_tell(name: str) -> bool:
    """Return whether a file is worth a look: without a suffix that tells, as parts of a whole and dumps have it."""
    suffix = inner_suffix(name)
    return not name.startswith("_") and (suffix in ("", ".xml") or any(sign.isdigit() for sign in suffix))


def _describe(reason: Reason, names: Sequence[str]) -> str:
    words, advice = reason.value
    if len(names) <= _MAX_NAMES:
        shown = ", ".join(names)
    else:
        kinds = Counter("folders" if name.endswith("/") else inner_suffix(name) or "without suffix" for name in names)
        counts = [f"{count:,} {kind}" for kind, count in kinds.most_common(_MAX_SUFFIXES)]
        shown = ", ".join([*counts, *(["…"] if len(kinds) > len(counts) else [])])
    return f"{len(names):,} {words} ({shown}{f': {advice}' if advice else ''})"
