"""Inputs that are not on this machine's file system: URIs such as ``s3://bucket/a.jsonl``, through fsspec."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any, cast

from kexue_train.foundation.credentials import MASK, is_masked
from kexue_train.foundation.errors import CorpusError

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class RemoteStatus:
    """What a store tells about a file."""

    bytes: int | None
    """None if it does not say."""
    modified_ns: int
    """Time of change, or a number that stands for the version; 0 if the store tells neither."""
    has_ranges: bool
    """Whether it can be read from anywhere in it."""


def is_uri(path: str) -> bool:
    """Return whether ``path`` is ``scheme://...``."""
    return _URI.match(path) is not None


@contextmanager
def open_remote(uri: str) -> Iterator[IO[bytes]]:
    """Open a file for reading; it cannot seek if the store gives no ranges."""
    can_seek = stat_remote(uri).has_ranges
    with _explain(uri):
        system, path = _locate(uri)
        # For HTTP, a block size of 0 stands for reading on and on in one request.
        file = system.open(path, "rb") if can_seek else system.open(path, "rb", block_size=0)
    try:
        yield cast("IO[bytes]", _RemoteFile(uri, file, can_seek))
    finally:
        file.close()


def stat_remote(uri: str) -> RemoteStatus:
    """Return size and version of a file.

    Raises:
        CorpusError: If it is not there or the store cannot be reached.
    """
    with _explain(uri):
        system, path = _locate(uri)
        info = system.info(path)
    has_ranges = not path.startswith("http") or bool(info.get("partial"))
    return RemoteStatus(info.get("size"), _version(info), has_ranges)


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder of a store, listed whole; for ``folder_lists.Folder``."""

    path: str
    _files: dict[str, str] = field(default_factory=dict)
    """Name -> URI."""
    _folders: dict[str, RemoteFolder] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """Names of the files in it."""
        return sorted(self._files)

    @property
    def folders(self) -> list[str]:
        """Names of the folders in it."""
        return sorted(self._folders)

    def enter(self, name: str) -> RemoteFolder:
        """Return a folder in it."""
        return self._folders[name]

    def path_of(self, name: str) -> str:
        """Return the URI of something in it."""
        return self._files.get(name, f"{self.path.rstrip('/')}/{name}")

    def read(self, name: str) -> bytes:
        """Return the contents of a file in it."""
        with open_remote(self._files[name]) as file:
            return file.read()

    def add(self, uri: str, names: Sequence[str]) -> None:
        """Put a file into it, below the folders that come before its own name."""
        first, *rest = names
        if rest:
            self._folders.setdefault(first, RemoteFolder(self.path_of(first))).add(uri, rest)
        else:
            self._files[first] = uri


Matches = list[tuple[RemoteFolder, list[str]]]
"""Folders, each with the names of those of its files that match a glob."""


def expand_remote(uri: str) -> str | RemoteFolder | Matches:
    """Return what a URI names: a file, which is the URI itself; a folder; or the files that match a glob.

    Raises:
        CorpusError: If there are none or the store cannot be reached.
    """
    with _explain(uri):
        system, path = _locate(uri)
        if system.isfile(path) and not uri.endswith("/"):
            return uri
        # A question mark in a web address is no glob.
        is_glob = "*" in path or (not path.startswith("http") and any(sign in path for sign in "?["))
        if is_glob:
            found = sorted(name for name in system.glob(path) if not system.isdir(name))
            matches = [(_open_parent(uri, system, parent, names), names) for parent, names in _by_parent(found).items()]
        else:
            found = system.find(path)
    if not found:
        raise CorpusError(f"{uri}: no such input file, folder or glob, or an empty folder; check the URI")
    if is_glob:
        return matches
    folder = RemoteFolder(uri)
    for name in found:
        folder.add(_uri_of(uri, system, name), name.removeprefix(path).strip("/").split("/"))
    return folder


def _by_parent(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for parent, _, name in (name.rpartition("/") for name in names):
        found.setdefault(parent, []).append(name)
    return found


def _open_parent(uri: str, system: Any, path: str, names: Sequence[str]) -> RemoteFolder:
    """List the folder of some matches, without what lies deeper; of a web server only the matches are known."""
    folder = RemoteFolder(_uri_of(uri, system, path))
    if not path.startswith("http"):
        entries = system.ls(path, detail=True)
        names = [entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file"]
    for name in names:
        folder.add(_uri_of(uri, system, f"{path}/{name}"), [name])
    return folder


def _uri_of(uri: str, system: Any, name: str) -> str:
    """Return the URI of a file of the store of ``uri``, reached in the same way."""
    _, chain, rest = uri.partition("::")
    return f"{system.unstrip_protocol(name)}{chain}{rest}"


def _locate(uri: str) -> tuple[Any, str]:
    if is_masked(uri):
        raise CorpusError(
            f"{uri}: credentials were here, and are not kept ({MASK}); give the address again as it was, such as in "
            "the configuration that this one was made from"
        )
    from fsspec.core import url_to_fs  # noqa: PLC0415  # slow to import, and rarely needed

    return cast("tuple[Any, str]", url_to_fs(uri))


def _version(info: dict[str, Any]) -> int:
    for key in ("mtime", "LastModified", "last_modified", "Last-Modified", "updated"):
        match info.get(key):
            case int() | float() as seconds:
                return int(seconds * 10**9)
            case datetime() as time:
                return int(time.timestamp() * 10**9)
            case str() as text if key == "Last-Modified":
                return int(parsedate_to_datetime(text).timestamp() * 10**9)
    tag = info.get("ETag") or info.get("etag") or info.get("md5Hash")
    return int.from_bytes(hashlib.sha256(str(tag).encode()).digest()[:7], "big") if tag else 0


class _RemoteFile:
    """A file of fsspec whose errors name the URI."""

    closed = False

    def __init__(self, uri: str, file: Any, can_seek: bool) -> None:
        self._uri, self._file, self._can_seek = uri, file, can_seek

    def read(self, size: int = -1) -> bytes:
        with _explain(self._uri):
            return cast("bytes", self._file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        with _explain(self._uri):
            return cast("int", self._file.seek(offset, whence))

    def tell(self) -> int:
        return cast("int", self._file.tell())

    def seekable(self) -> bool:
        return self._can_seek


@contextmanager
def _explain(uri: str) -> Iterator[None]:
    try:
        yield
    except CorpusError:
        raise
    except Exception as error:  # noqa: BLE001  # every store raises what it likes
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        raise CorpusError(
            f"{uri}: cannot be read ({reason}); check the URI, the network, your credentials and that the fsspec "
            "package of its scheme is installed, or leave it out"
        ) from None  # whose text has the credentials, and a server of flows would record it
