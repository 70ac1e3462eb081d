"""Takes the English prose out of a page or a module: no code, tables, doctests, markup or other languages."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator

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


def module_prose(source: bytes) -> str:
    """The docstrings of a module, its classes and functions in their order; the module is parsed, never run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    return page_prose("\n\n".join(_docstrings(tree)))


def page_prose(text: str) -> str:
    """The paragraphs of a text, reStructuredText, Markdown or POD page that read as English, blank lines between."""
    text = _HTML.sub(" ", _FENCE.sub("\n\n", text.replace("\r\n", "\n").replace("\f", "\n").expandtabs()))
    text = _ROLE.sub(r"\1", _LINK.sub(r"\1", _IMAGE.sub("", text)))
    text = _RULE.sub("", _POD_CODE.sub(r"\1", text))
    kept = (cleaned for part in _BREAK.split(text) if is_prose(cleaned := _clean_paragraph(part)))
    return "\n\n".join(kept)


def cut_page(text: str) -> str:
    """The first paragraphs, ``MAX_DOCUMENT_CHARS`` at most."""
    if len(text) <= MAX_DOCUMENT_CHARS:
        return text
    end = text.rfind("\n\n", 0, MAX_DOCUMENT_CHARS)
    return text[: end if end > 0 else MAX_DOCUMENT_CHARS]


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph is mostly letters, and its words are in about the proportions of English."""
    if len(paragraph) < 40 or len(paragraph) > MAX_DOCUMENT_CHARS:
        return False
    words = _WORD.findall(paragraph)
    if len(words) < 7 or not 3 <= sum(map(len, words)) / len(words) <= 8:
        return False
    plain = sum(map(len, words)) + paragraph.count(" ") + paragraph.count("\n")
    stop_words = sum(word.lower() in _STOP_WORDS for word in words)
    return plain >= 0.85 * len(paragraph) and stop_words >= 0.2 * len(words)


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
