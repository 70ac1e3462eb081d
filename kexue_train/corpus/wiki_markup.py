"""Turns the markup of MediaWiki into plain text: prose, lists and headings; no templates, tables, files or notes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from kexue_train.foundation.errors import ResourceError

_DROPPED_TAGS = {
    *(
        "ref",
        "references",
        "math",
        "chem",
        "ce",
        "score",
        "timeline",
        "graph",
        "hiero",
        "syntaxhighlight",
        "source",
        "pre",
    ),
    *("gallery", "imagemap", "mapframe", "table", "style", "templatestyles", "section", "indicator", "inputbox"),
    "categorytree",
}
_BLOCKS = frozenset(("br", "p", "div", "li", "dd", "dt", "blockquote", "hr"))
_INTERLANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")
_VARIANT = re.compile(r"-\{(?:[A-Za-z-]\|)?([^{}]*)\}-")
"""Chinese words in several scripts: ``-{zh-hans:…; zh-hant:…}-``."""
_SWITCH = re.compile(r"__[A-Z]+__")
_HEADING = "\x01"
"""Begins the line of a heading, followed by its level; XML cannot hold this character."""
FILE_NAMES, CATEGORY_NAMES = ("file", "image", "media"), ("category",)
"""Names of the namespaces of files and categories that every wiki knows, in lower case."""


def load_parser(path: str) -> Callable[[str], Any]:
    """Return the parser of the library.

    Raises:
        ResourceError: If the library is missing.
    """
    try:
        from mwparserfromhell import parse  # noqa: PLC0415  # optional
    except ImportError:
        raise ResourceError(
            f"{path}: mwparserfromhell is not installed, which reads the markup of a wiki; install it with "
            "pip install 'kexue_train[web]'"
        ) from None
    parser: Callable[[str], Any] = parse
    return parser


def to_plain(code: Any, dropped_namespaces: Collection[str]) -> str:
    """Return the text of parsed markup.

    Args:
        code: ``mwparserfromhell.wikicode.Wikicode``.
        dropped_namespaces: Names in lower case; links into them show no text, such as those of files and categories.
    """
    text = "".join(_render(code, dropped_namespaces))
    text = _SWITCH.sub("", _VARIANT.sub(_one_variant, text))
    lines = [line.strip() for line in text.replace("\xa0", " ").split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_without_empty_headings(lines))).strip()


def _render(code: Any, dropped: Collection[str]) -> Iterator[str]:
    for node in code.nodes:
        match type(node).__name__:
            case "Text":
                yield node.value
            case "Wikilink":
                yield from _render_link(node, dropped)
            case "ExternalLink":
                if node.brackets and node.title is not None:
                    yield from _render(node.title, dropped)
            case "Heading":
                yield f"\n{_HEADING}{node.level}"
                yield "".join(_render(node.title, dropped)).strip()
                yield "\n"
            case "Tag":
                yield from _render_tag(node, dropped)
            case "HTMLEntity":
                yield node.normalize()
            case _:  # templates, arguments and comments
                pass


def _render_link(node: Any, dropped: Collection[str]) -> Iterator[str]:
    target = str(node.title).strip()
    namespace = target.partition(":")[0].strip().lower() if ":" in target else ""
    if namespace in dropped or _INTERLANGUAGE.match(target):
        return
    if node.text is not None:
        yield from _render(node.text, dropped)
    else:
        yield target.lstrip(":")


def _render_tag(node: Any, dropped: Collection[str]) -> Iterator[str]:
    name = str(node.tag).strip().lower()
    if name in _DROPPED_TAGS:
        return
    if name in _BLOCKS and not node.wiki_markup:
        yield "\n"
    if node.contents is not None:
        yield from _render(node.contents, dropped)


def _one_variant(match: re.Match[str]) -> str:
    """Return the first of the variants: in the Chinese Wikipedia simplified characters, as a rule."""
    first = match[1].partition(";")[0]
    _, colon, text = first.partition(":")
    return text.strip() if colon else first


def _without_empty_headings(lines: list[str]) -> list[str]:
    """Take out headings with no text below them before the next one of their level or a higher one."""
    kept: list[str] = []
    level = 0  # of the heading that follows; 0: at the end
    has_text = False
    for line in reversed(lines):
        if not line.startswith(_HEADING):
            has_text = has_text or bool(line)
            kept.append(line)
            continue
        own = int(line[1])
        if has_text or level > own:
            kept.append(line[2:].strip())
            level, has_text = own, False
    return kept[::-1]
