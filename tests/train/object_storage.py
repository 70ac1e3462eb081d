"""A real S3 server on this machine, and other places for a mirror."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Self

import pyarrow.fs
from moto.server import ThreadedMotoServer


class S3Server:
    """moto's S3 over HTTP; what it stores outlives ``stop`` and ``start``, as that of a storage does an outage."""

    def __init__(self) -> None:
        self.port = 0
        self._server: ThreadedMotoServer | None = None

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        _, self.port = self._server.get_host_and_port()

    def stop(self) -> None:
        if self._server:
            self._server.stop()
            self._server = None

    @property
    def is_down(self) -> bool:
        return self._server is None

    def new_folder(self) -> str:
        """URI of a folder in a new bucket."""
        bucket = f"bucket-{uuid.uuid4().hex[:8]}"
        options = f"endpoint_override=127.0.0.1:{self.port}&scheme=http"
        system, _ = pyarrow.fs.FileSystem.from_uri(f"s3://key:hidden@{bucket}?{options}&allow_bucket_creation=true")
        system.create_dir(bucket)
        return f"s3://key:hidden@{bucket}/runs/one?{options}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def contents(uri: str) -> dict[str, bytes]:
    """All files below a URI."""
    if uri.startswith("memory://"):
        import fsspec

        system, root = fsspec.core.url_to_fs(uri)
        return {name[len(root) + 1 :]: system.cat_file(name) for name in system.find(root)}
    system, root = pyarrow.fs.FileSystem.from_uri(uri)
    found = system.get_file_info(pyarrow.fs.FileSelector(root, recursive=True, allow_not_found=True))
    files = [info.path for info in found if info.type == pyarrow.fs.FileType.File]
    return {path[len(root) + 1 :]: system.open_input_stream(path).read() for path in files}


def write(uri: str, name: str, content: bytes | None) -> None:
    """Put a file under a URI, or delete it."""
    system, root = pyarrow.fs.FileSystem.from_uri(uri)
    if content is None:
        system.delete_file(f"{root}/{name}")
        return
    with system.open_output_stream(f"{root}/{name}") as file:
        file.write(content)


def local_contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
