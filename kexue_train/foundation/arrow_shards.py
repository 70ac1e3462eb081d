"""Arrow IPC stream files and the folder form around them that ``datasets.load_from_disk`` opens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from kexue_train.foundation.artifacts import MANIFEST_NAME, digest_of, read_manifest, write_atomic
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.write_behind import new_file

_MOD = 1 << 128
_SHARD_NAMES = "data-*-of-*.arrow"


def shard_name(index: int, total: int) -> str:
    """Return a name like ``data-00003-of-00016.arrow``."""
    return f"data-{index:05d}-of-{total:05d}.arrow"


class ShardWriter:
    """Writes one Arrow IPC stream aside and renames it when closed without error; a torn shard never gets the name.

    Attributes:
        rows: Rows written so far.
        file: The file; knows its size and checksum, also once it is closed.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, durable: bool = True) -> None:
        self.rows = 0
        self._schema = schema
        self._stack = ExitStack()
        self._opening = new_file(path, durable=durable)

    def write(self, batch: pa.RecordBatch | pa.Table) -> None:
        """Append rows; the schema must be the shard's."""
        self._writer.write(batch)
        self.rows += batch.num_rows

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.file = stack.enter_context(self._opening)
            self._writer = stack.enter_context(pa.ipc.new_stream(self.file, self._schema))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def read_shard(path: Path) -> pa.Table:
    """Open one shard as a table over the memory-mapped file (nothing is copied).

    Raises:
        ArtifactError: If the file is missing or no whole Arrow IPC stream.
    """
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            return reader.read_all()
    except (OSError, pa.ArrowException) as error:
        first = str(error).partition("\n")[0]
        raise ArtifactError(f"{path}: cannot be read as an Arrow IPC stream ({first}); run its stage again") from None


def shard_paths(folder: Path) -> list[Path]:
    """Return the folder's ``data-*.arrow`` files in order: those that its manifest lists, if it has one.

    Raises:
        ArtifactError: If there is no shard, or the manifest is damaged.
    """
    if (folder / MANIFEST_NAME).exists():
        paths = sorted(folder / name for name in read_manifest(folder).files if fnmatch(name, _SHARD_NAMES))
    else:
        paths = sorted(folder.glob(_SHARD_NAMES))
    if not paths:
        raise ArtifactError(
            f"{folder}: holds no data-*-of-*.arrow shard; give a folder made by 'kexue shuffle' or 'kexue samples'"
        )
    return paths


def write_dataset_files(folder: Path, features: Mapping[str, Any], names: Sequence[str]) -> None:
    """Write what ``datasets.load_from_disk(folder)`` needs to open the shards ``names``.

    Args:
        folder: Where the shards lie.
        features: ``datasets.Features.to_dict()`` of their columns.
        names: The shards in order.
    """
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": digest_of(list(names))[-16:],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_atomic(folder / "dataset_info.json", json.dumps(info, indent=2))
    write_atomic(folder / "state.json", json.dumps(state, indent=2))


def format_checksum(value: int) -> str:
    """Return the checksum as 32 hexadecimal digits."""
    return f"{value % _MOD:032x}"
