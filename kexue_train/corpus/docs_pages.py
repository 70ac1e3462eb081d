"""Finds the documentation installed on this machine, in an order that is fair to every package, and reads its prose.

Kept is English prose: no code, tables, doctests, markup or other languages.
"""

from __future__ import annotations

import ast
import gc
import gzip
import inspect
import os
import re
import site
import sysconfig
import warnings
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import xxhash

MAX_DOCUMENT_CHARS = 20_000
"""A longer page is cut at a paragraph."""
MIN_DOCUMENT_CHARS = 200
"""A shorter page is left out."""

_COMMON_WORDS = (
    "a an the of and or to in is are was be been it its this that these for with as by on at from not no if when then "
    "which will can may must should you your we they has have do does but all any other each into than so only"
)
_STOP_WORDS = frozenset(_COMMON_WORDS.split())
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)
_HTML = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]{0,300}>", re.DOTALL)
_IMAGE = re.compile(r"\[?!\[[^\]]*\]\([^)]*\)(?:\]\([^)]*\))?")
_LINK = re.compile(r"\[([^\[\]]{1,200})\]\([^()\s]{1,500}\)")
_ROLE = re.compile(r":[a-z:]{1,30}:`([^`<]{1,200}?)(?:\s*<[^`>]*>)?`")
_POD_CODE = re.compile(r"\b[BCEFILSXZ]<+\s?([^<>]{1,300}?)\s?>+")
_RULE = re.compile(r"^\s*([=\-~^*#_+.|])\1{2,}\s*$", re.MULTILINE)
_BREAK = re.compile(r"\n\s*\n")
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


def module_prose(source: bytes) -> str:
    """Return the docstrings of a module, its classes and functions in their order; the module is parsed, never run."""
    try:
        with warnings.catch_warnings(), _without_garbage_collection():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return page_prose("\n\n".join(_docstrings(tree)))


def page_prose(text: str) -> str:
    """Return the paragraphs of a page (text, reStructuredText, Markdown, POD) that read as English."""
    text = _HTML.sub(" ", _FENCE.sub("\n\n", text.replace("\r\n", "\n").replace("\f", "\n").expandtabs()))
    text = _ROLE.sub(r"\1", _LINK.sub(r"\1", _IMAGE.sub("", text)))
    text = _RULE.sub("", _POD_CODE.sub(r"\1", text))
    kept = (cleaned for part in _BREAK.split(text) if is_prose(cleaned := _clean_paragraph(part)))
    return "\n\n".join(kept)


def cut_page(text: str) -> str:
    """Return the first paragraphs, ``MAX_DOCUMENT_CHARS`` at most."""
    if len(text) <= MAX_DOCUMENT_CHARS:
        return text
    end = text.rfind("\n\n", 0, MAX_DOCUMENT_CHARS)
    return text[: end if end > 0 else MAX_DOCUMENT_CHARS]


def is_prose(paragraph: str) -> bool:
    """Return whether a paragraph is mostly letters, and its words are in about the proportions of English."""
    if len(paragraph) < 40 or len(paragraph) > MAX_DOCUMENT_CHARS:
        return False
    words = _WORD.findall(paragraph)
    if len(words) < 7 or not 3 <= sum(map(len, words)) / len(words) <= 8:
        return False
    plain = sum(map(len, words)) + paragraph.count(" ") + paragraph.count("\n")
    stop_words = sum(word.lower() in _STOP_WORDS for word in words)
    return plain >= 0.85 * len(paragraph) and stop_words >= 0.2 * len(words)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Hold the collector back: a tree has no cycles, and looking for some takes half of the time of parsing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    text = ast.get_docstring(node, clean=False)
    if text and len(text) >= 40:
        yield inspect.cleandoc(text)
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from _docstrings(child)


def _clean_paragraph(part: str) -> str:
    """Join hard-wrapped lines; a paragraph of code, a doctest, a directive or an indented literal becomes empty."""
    lines = [line.rstrip() for line in part.strip("\n").split("\n")]
    first = lines[0].lstrip()
    if first.startswith((">>>", "...", "..", "|", "+-", "$ ", "=begin", "=cut", "@", "#!", "{", "In [")):
        return ""
    if any(line.lstrip().startswith(">>>") for line in lines):
        lines = lines[: next(i for i, line in enumerate(lines) if line.lstrip().startswith(">>>"))]
    text = " ".join(line.strip().lstrip("#*>").strip() for line in lines)
    return re.sub(r"[ \u00a0]{2,}", " ", text.replace("``", "").replace("**", "").replace("`", "")).strip()


@dataclass(frozen=True, slots=True)
class Page:
    """A file that may hold documentation."""

    path: Path
    package: str
    source: str
    """The path without what is particular to the machine."""


def find_pages() -> list[Page]:
    """Return every candidate page: the first of each package, then the second of each, and so on, packages by hash.

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
    """Return the English prose of a page; empty if it has none or cannot be read."""
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
    """Yield candidates below ``folder``; links to folders are not followed, unreadable folders are skipped."""
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
