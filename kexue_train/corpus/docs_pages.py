"""Finds the documentation installed on this machine, in an order that is fair to every package."""

from __future__ import annotations

import gzip
import os
import site
import sysconfig
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kexue_train.corpus.prose import module_prose, page_prose

_PAGE_SUFFIXES = (".rst", ".md", ".txt", ".pod")
_PAGE_NAMES = ("readme", "copyright", "license", "licence", "copying", "notice", "faq", "howto", "install", "metadata")
_SKIPPED_FOLDERS = {
    "test",
    "tests",
    "testing",
    "__pycache__",
    "node_modules",
    "locale",
    "locales",
    "idle_test",
    "lib2to3",
}
_SKIPPED_PAGES = ("changelog", "requirements", "top_level", "entry_points", "sources", "record")
_MAX_PAGE_BYTES = 1_000_000  # larger ones are generated, or no text
_SYSTEM_FOLDERS = ("/usr/share/doc", "/usr/share/common-licenses", "/usr/share/perl")


@dataclass(frozen=True, slots=True)
class Page:
    """A file that may hold documentation."""

    path: Path
    package: str
    source: str
    """The path without what is particular to the machine."""


def find_pages() -> list[Page]:
    """Every candidate page: the first of each package, then the second of each, and so on, packages by hash.

    So whatever part of the list fits, it holds small packages whole and of large ones an equal, random share.
    """
    packages: dict[str, list[Page]] = defaultdict(list)
    for label, root in _roots():
        for page in _walk(label, root, root):
            packages[page.package].append(page)
    ranked = []
    for pages in packages.values():
        pages.sort(key=lambda page: _hash(page.source))
        ranked += [(rank, _hash(page.source), page.source, page) for rank, page in enumerate(pages)]
    return [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:3])]


def read_page(page: Page) -> str:
    """The English prose of a page; empty if it has none or cannot be read."""
    try:
        if page.path.stat().st_size > _MAX_PAGE_BYTES:
            return ""
        with gzip.open(page.path) if page.path.suffix == ".gz" else page.path.open("rb") as file:
            data = file.read(_MAX_PAGE_BYTES)
    except (OSError, EOFError, zlib.error):
        return ""
    if page.path.suffix == ".py":
        return module_prose(data) if b'"""' in data or b"'''" in data else ""
    text = data.decode("utf-8", errors="replace")
    if "\0" in text or text.count("\ufffd") > 2:
        return ""
    if page.path.name == "METADATA":  # headers, a blank line, then the long description
        text = text.partition("\n\n")[2]
    return page_prose(text)


def _roots() -> Iterator[tuple[str, Path]]:
    paths = sysconfig.get_paths()
    yield "python", Path(paths["stdlib"])
    seen = set()
    for folder in [*site.getsitepackages(), paths["purelib"], paths["platlib"]]:
        resolved = Path(folder).resolve()
        if resolved not in seen:
            seen.add(resolved)
            yield "site-packages", resolved
    for folder in _SYSTEM_FOLDERS:
        yield Path(folder).name, Path(folder)


def _walk(label: str, root: Path, folder: Path) -> Iterator[Page]:
    """Candidates below ``folder``; links to folders are not followed, unreadable folders are skipped."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _SKIPPED_FOLDERS and not entry.name.startswith("."):
                if label == "python" and entry.name in ("site-packages", "dist-packages"):
                    continue
                yield from _walk(label, root, path)
        elif entry.is_file() and _is_candidate(path):
            relative = path.relative_to(root)
            top = relative.parts[0].partition("-")[0].removesuffix(".py")
            yield Page(path, f"{label}/{top}", f"{label}/{relative.as_posix()}")


def _is_candidate(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(".py"):
        return not path.name.endswith(".gz")
    if name.startswith(_SKIPPED_PAGES):
        return False
    return name.endswith(_PAGE_SUFFIXES) or name.startswith(_PAGE_NAMES) or "common-licenses" in path.parts


def _hash(text: str) -> int:
    return int(xxhash.xxh3_64_intdigest(os.fsencode(text)))
