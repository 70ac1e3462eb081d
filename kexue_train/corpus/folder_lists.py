"""Folders that list their own files: which files they are, so that what else lies there is not read for data.

A data set that ``datasets`` saved or cached, one or several splits of it; a folder that a stage of this package made;
shards for streaming with an ``index.json``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, TypeVar

from kexue_train.foundation.artifacts import MANIFEST_NAME
from kexue_train.foundation.errors import CorpusError

DESCRIPTIONS = {"dataset_dict.json", "dataset_info.json", "dataset_infos.json", MANIFEST_NAME, "state.json"}
"""Files beside the data of a folder that tell about it; named by themselves they are read like any other."""
LIST_NAMES = (*DESCRIPTIONS - {"dataset_infos.json"}, "index.json")
"""The files that hold a list."""
RUN_MARK = ".run"
"""The file that makes a folder a run folder; see ``foundation/run_dir.py``."""
_Kind = TypeVar("_Kind")
_HOLDING_DOCUMENTS = {"corpus", "text_shards"}
_TABLES = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}


class Folder(Protocol):
    """A folder of inputs, wherever it lies."""

    @property
    def path(self) -> str:
        """How it is named."""
        ...

    @property
    def files(self) -> Sequence[str]:
        """Names of the files in it, sorted."""
        ...

    @property
    def folders(self) -> Sequence[str]:
        """Names of the folders in it, sorted."""
        ...

    def enter(self, name: str) -> Folder | None:
        """Return one of ``folders``; None if it was entered before, by another way."""
        ...

    def path_of(self, name: str) -> str:
        """Return the path of something in it."""
        ...

    def read(self, name: str) -> bytes:
        """Return the contents of one of ``files``."""
        ...


@dataclass(frozen=True, slots=True)
class FileList:
    """What a folder lists."""

    name: str
    """The file that holds the list."""
    files: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()
    splits: tuple[str, ...] = ()
    """Where it holds several splits: what each is named by, relative to the folder."""


def is_artifact(folder: Folder) -> bool:
    """Return whether a stage made the folder, or it is that of a run."""
    return RUN_MARK in folder.files or _read_manifest(folder) is not None


def find_list(folder: Folder) -> FileList | None:
    """Return the files that the folder lists as its own; None if it lists none, and all its data files count.

    Raises:
        CorpusError: If the folder holds no documents, or holds them in a form that is not read.
    """
    if RUN_MARK in folder.files:
        raise CorpusError(f"{folder.path}: is the folder of a run; name its text shards: {folder.path_of('shards')}")
    for name, kind in _TABLES.items():
        if name in folder.folders:
            raise _is_table(folder.path, kind)
    return next((found for reader in _READERS if (found := reader(folder)) is not None), None)


def check_list(folder: Folder, found: FileList) -> None:
    """Make sure that a list can be followed.

    Raises:
        CorpusError: If something is missing, or several splits are there to choose from.
    """
    if len(found.splits) > 1:
        raise CorpusError(
            f"{folder.path}: holds several splits; name those to be read: "
            f"{', '.join(folder.path_of(split) for split in found.splits)}"
        )
    there = {*folder.files, *folder.folders}
    missing = [name for name in (*found.files, *found.folders) if name not in there]
    if missing:
        raise CorpusError(
            f"{folder.path_of(missing[0])}: is missing, yet {folder.path_of(found.name)} lists it; fetch it or make "
            "the folder again"
        )


def _read_manifest_list(folder: Folder) -> FileList | None:
    manifest = _read_manifest(folder)
    if manifest is None:
        return None
    if manifest["kind"] not in _HOLDING_DOCUMENTS:
        raise CorpusError(
            f"{folder.path}: holds no documents but {manifest['kind']}, made by kexue_train; name text shards"
        )
    own = {name for name in manifest["files"] if "/" not in name}
    return FileList(MANIFEST_NAME, frozenset(own - DESCRIPTIONS))


def _read_splits(folder: Folder) -> FileList | None:
    splits = _read_json(folder, "dataset_dict.json").get("splits")
    if not _is_list_of(splits, str):
        return None
    return FileList("dataset_dict.json", folders=frozenset(splits), splits=tuple(splits))


def _read_state(folder: Folder) -> FileList | None:
    state = _read_json(folder, "state.json")
    entries = state.get("_data_files")
    if not _is_list_of(entries, dict):
        return None
    if state.get("_indices_data_files"):
        raise CorpusError(
            f"{folder.path}: is a selection of the rows in its files, as old versions of datasets saved it; open it "
            "with datasets.load_from_disk and save it again with save_to_disk"
        )
    return FileList("state.json", frozenset(str(entry.get("filename")) for entry in entries))


def _read_cache(folder: Folder) -> FileList | None:
    """Return the files of a data set as ``datasets.load_dataset`` keeps it, one or more for each split."""
    splits = _read_json(folder, "dataset_info.json").get("splits")
    entries = splits.values() if isinstance(splits, dict) else ()
    files = {prefix: names for entry in entries for prefix, names in _files_of_split(folder, entry)}
    own = frozenset(name for names in files.values() for name in names)
    if own.isdisjoint(folder.files):
        return None  # a data set in another form, which comes with the same description
    patterns = [names[0] if len(names) == 1 else f"{prefix}-*" for prefix, names in files.items()]
    return FileList("dataset_info.json", own, splits=tuple(patterns))


def _files_of_split(folder: Folder, entry: Any) -> Iterator[tuple[str, list[str]]]:
    if not isinstance(entry, dict):
        return
    prefix = f"{entry.get('dataset_name')}-{entry.get('name')}"
    total = len(entry.get("shard_lengths") or [0])
    stems = [f"{prefix}-{number:05d}-of-{total:05d}" for number in range(total)] if total > 1 else [prefix]
    suffix = ".parquet" if f"{stems[0]}.parquet" in folder.files else ".arrow"
    yield prefix, [f"{stem}{suffix}" for stem in stems]


def _read_index(folder: Folder) -> FileList | None:
    """Return the shards for streaming, each plain or packed."""
    shards = _read_json(folder, "index.json").get("shards")
    if not shards or not _is_list_of(shards, dict):
        return None
    forms = [[shard.get(form) for form in ("raw_data", "zip_data")] for shard in shards]
    names = [[str(form["basename"]) for form in of if isinstance(form, dict) and "basename" in form] for of in forms]
    if not all(names):
        return None
    there = set(folder.files)
    return FileList("index.json", frozenset(next((n for n in of if n in there), of[0]) for of in names))


_READERS: tuple[Callable[[Folder], FileList | None], ...] = (
    _read_manifest_list,
    _read_splits,
    _read_state,
    _read_cache,
    _read_index,
)


def check_no_table(folder: Folder) -> None:
    """Refuse the folder ``metadata`` of an Iceberg table, which says which of the files beside it count.

    Raises:
        CorpusError: If it is one.
    """
    parent, _, name = folder.path.rstrip("/").rpartition("/")
    if name == "metadata" and any(file.endswith(".metadata.json") for file in folder.files):
        raise _is_table(parent, "Iceberg")


def _is_table(path: str, kind: str) -> CorpusError:
    return CorpusError(
        f"{path}: is a {kind} table, whose log says which of its files count; write its rows to plain Parquet files "
        "with a program that knows such tables, or name the files that count"
    )


def _read_manifest(folder: Folder) -> dict[str, Any] | None:
    values = _read_json(folder, MANIFEST_NAME)
    is_ours = {"schema_version", "kind", "settings_digest"} <= values.keys() and isinstance(values.get("files"), dict)
    return values if is_ours else None


def _read_json(folder: Folder, name: str) -> dict[str, Any]:
    """Return the object in a file; an empty one if there is no such file or it holds something else."""
    if name not in folder.files:
        return {}
    try:
        values = json.loads(folder.read(name))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _is_list_of(values: object, kind: type[_Kind]) -> TypeGuard[list[_Kind]]:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
