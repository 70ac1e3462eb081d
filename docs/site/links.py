"""Where a file of the repository is on the site, and links that are written for the repository, turned to go there."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_CODE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$|(`+)(?!`).+?(?<!`)\2(?!`)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()([^()\s]+)(\))")
_CHINESE_BREAK = re.compile(r"(?<=[\u2e80-\uffef])\n(?=[\u2e80-\uffef])")
_HOMES = {"README.md": "index.md", "README.zh.md": "zh/index.md"}


def page_of(path: str) -> str:
    """Return the page or file of the site that shows the repository's file or folder ``path``.

    Documents in ``docs/`` keep their place. What is outside goes to ``repository/``: Markdown as it is, other files as
    a page with their text, a folder as its README or as a page with its contents.
    """
    if path in _HOMES:
        return _HOMES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/").removesuffix(".ipynb") + (".md" if path.endswith(".ipynb") else "")
    if (ROOT / path).is_dir():
        return page_of(f"{path}/README.md") if (ROOT / path / "README.md").exists() else f"repository/{path}/index.md"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def source_of(page: str) -> str:
    """Return the file of the repository that the page of the site ``page`` shows, if it is a Markdown file."""
    by_page = {home: source for source, home in _HOMES.items()}
    if page in by_page:
        return by_page[page]
    return page.removeprefix("repository/") if page.startswith("repository/") else f"docs/{page}"


def linked_files(text: str, source: str) -> Iterator[str]:
    """Yield the files and folders of the repository that the Markdown ``text`` of the file ``source`` links to."""
    for part, is_code in _parts(text):
        for _, target, _ in () if is_code else _LINK.findall(part):
            path = _path_of(target, source)
            if path is not None:
                yield path


def rewrite_links(text: str, source: str) -> str:
    """Return the Markdown ``text`` of the file ``source`` with links to the repository's files as links of the site."""
    here = posixpath.dirname(page_of(source))

    def moved(match: re.Match[str]) -> str:
        path = _path_of(match[2], source)
        if path is None:
            return match[0]
        anchor = match[2].partition("#")[2]
        return f"{match[1]}{posixpath.relpath(page_of(path), here or '.')}{'#' * bool(anchor)}{anchor}{match[3]}"

    return "".join(part if is_code else _LINK.sub(moved, part) for part, is_code in _parts(text))


def join_chinese_lines(text: str) -> str:
    """Return Markdown in which no line ends between two Chinese characters, where a browser would show a space."""
    return "".join(part if is_code else _CHINESE_BREAK.sub("", part) for part, is_code in _parts(text))


def _path_of(target: str, source: str) -> str | None:
    """Return what ``target`` means in the file ``source``; None if it is an address, an anchor or does not exist."""
    name = target.partition("#")[0]
    if not name or ":" in name or name.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the pieces of ``text`` in order, each with whether it is code, where nothing is a link."""
    end = 0
    for match in _CODE.finditer(text):
        yield text[end : match.start()], False
        yield match[0], True
        end = match.end()
    yield text[end:], False
