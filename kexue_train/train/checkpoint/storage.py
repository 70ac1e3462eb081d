"""A folder of checkpoints in object storage, reached through pyarrow's file systems or, for other schemes, fsspec."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from kexue_train.foundation.artifacts import MANIFEST_NAME, Manifest
from kexue_train.foundation.credentials import MASK, is_masked
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.train.checkpoint.format import is_checkpoint_name


class Storage:
    """``step-XXXXXXXX`` folders below a URI. One without ``manifest.json`` is torn and does not count.

    Every method may fail as it pleases the store: ``OSError``, or any error of an fsspec package.

    Args:
        uri: ``scheme://...`` as pyarrow's ``FileSystem.from_uri`` or fsspec's ``url_to_fs`` read it.

    Raises:
        ConfigError: If its credentials are masked.
    """

    def __init__(self, uri: str) -> None:
        if is_masked(uri):
            raise ConfigError(
                f"train.checkpoints.mirror={uri}: credentials were here, and are not kept ({MASK}); give the address "
                "again as it was, or leave them to the environment"
            )
        self._uri = uri
        parts = urlsplit(uri)
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        """The URI without credentials and options, to be shown."""

    def list_checkpoints(self) -> dict[str, bool]:
        """Whether each checkpoint is whole, by name."""
        system, root = self._opened
        found = system.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        files = {PurePosixPath(info.path) for info in found if info.type == fs.FileType.File}
        folders = {file.parent for file in files if is_checkpoint_name(file.parent.name)}
        return {folder.name: folder / MANIFEST_NAME in files for folder in folders}

    def read_manifest(self, name: str) -> Manifest:
        """The manifest of one checkpoint.

        Raises:
            ArtifactError: If it is damaged.
        """
        system, root = self._opened
        with system.open_input_stream(f"{root}/{name}/{MANIFEST_NAME}") as file:
            text = file.read()
        try:
            return Manifest.model_validate_json(text)
        except ValueError as error:
            raise ArtifactError(f"{MANIFEST_NAME} is damaged ({str(error).partition(chr(10))[0]})") from None

    def write_text(self, name: str, text: str) -> None:
        """Write one small file."""
        system, root = self._opened
        system.create_dir(root, recursive=True)
        with system.open_output_stream(f"{root}/{name}") as file:
            file.write(text.encode())

    def upload(self, path: Path) -> None:
        """Copy a local checkpoint; the manifest goes last, so that one torn on the way does not count."""
        system, root = self._opened
        target = f"{root}/{path.name}"
        system.create_dir(target, recursive=True)
        names = sorted(file.name for file in path.iterdir())
        for name in [*(name for name in names if name != MANIFEST_NAME), MANIFEST_NAME]:
            fs.copy_files(str(path / name), f"{target}/{name}", source_filesystem=_LOCAL, destination_filesystem=system)

    def download(self, name: str, target: Path) -> None:
        """Copy a checkpoint's files into the new folder ``target``.

        Raises:
            ArtifactError: If a file is missing.
        """
        system, root = self._opened
        target.mkdir()
        for file in (*self.read_manifest(name).files, MANIFEST_NAME):
            try:
                fs.copy_files(
                    f"{root}/{name}/{file}", str(target / file), source_filesystem=system, destination_filesystem=_LOCAL
                )
            except FileNotFoundError:
                raise ArtifactError(f"{file} is missing") from None

    def disown(self, name: str) -> None:
        """Delete a checkpoint's manifest: what is left of it does not count."""
        system, root = self._opened
        system.delete_file(f"{root}/{name}/{MANIFEST_NAME}")

    def delete(self, name: str) -> None:
        """Delete a folder."""
        system, root = self._opened
        system.delete_dir(f"{root}/{name}")

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """The file system and the path in it. Opened late, since a store may be out of reach for a while."""
        try:
            return cast("tuple[Any, str]", fs.FileSystem.from_uri(self._uri))
        except pa.ArrowInvalid as error:
            return self._open_fsspec(error)

    def _open_fsspec(self, refusal: pa.ArrowInvalid) -> tuple[Any, str]:
        from fsspec.core import url_to_fs  # noqa: PLC0415  # slow to import, and rarely needed

        try:
            system, root = url_to_fs(self._uri)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"train.checkpoints.mirror={self.name}: neither pyarrow ({refusal}) nor fsspec ({error}) can open it; "
                "give s3://, gs://, hdfs:// or file://, or install the fsspec package of its scheme"
            ) from None
        return fs.PyFileSystem(fs.FSSpecHandler(system)), root


_LOCAL = fs.LocalFileSystem()
