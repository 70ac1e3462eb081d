"""Recognises from the first bytes of a file what it is, whatever its name: data of some kind, or what stands for it."""

from __future__ import annotations

import codecs
import re
import unicodedata
from pathlib import PurePosixPath
from typing import NamedTuple

from kexue_train.corpus.formats import COMPRESSIONS, FORMATS
from kexue_train.corpus.streams import BOM

_POINTER_BYTES = 1024
"""The most that a file which only stands for another one has."""
_CONTROLS = bytes({*range(0x20)} - {*b"\t\n\v\f\r\x1b"})
_BINARY_SHARE = 0.3
"""Text with a larger share of control characters is none."""
_TEXT_SHARE = 0.9
"""What is taken for text has at least this share of visible characters."""
_UTF_32 = ((b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"))
_UTF_16 = ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))


class Contents(NamedTuple):
    """What a file is, and what to do about it."""

    name: str
    """What follows "the file is"."""
    remedy: str


_POINTERS = (
    (
        re.compile(rb"version https://(git-lfs|hawser)\.github\.com/spec/.*", re.DOTALL),
        Contents("a pointer of Git LFS instead of the data", "fetch the data with: git lfs pull"),
    ),
    (
        re.compile(rb"# xet version \d.*", re.DOTALL),
        Contents("a pointer of Git Xet instead of the data", "fetch the data with: git xet checkout, or git lfs pull"),
    ),
    (
        re.compile(rb"\S*/annex/objects/\S+\s*"),
        Contents("a pointer of git-annex instead of the data", "fetch the data with: git annex get"),
    ),
    (
        re.compile(rb"(404: Not Found|Entry not found|Repository not found|Invalid username or password\.)\s*"),
        Contents("the answer of a web server instead of the data", "check the address and fetch the data again"),
    ),
)
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html\b|\?xml[^>]*>\s*<error)", re.IGNORECASE)
_OTHERS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"LZIP\x01": "lzip data",
    b"\x89LZO\0": "lzop data",
    b"\x1f\x9d": "data of compress",
    b"\xff\x06\0\0sNaPpY": "snappy data",
    b"FEA1": "a Feather file of version 1",
    b"Obj\x01": "an Avro file",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3\0": "an SQLite database",
    b"%PDF-": "a PDF",
    b"\x89PNG\r\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x37\xa4\x30\xec": "a zstd dictionary",
} | {bytes([0x20 + i]) + b"\xb5\x2f\xfd": "zstd data of a version before 0.8" for i in range(2, 8)}


def find_pointer(path: str, head: bytes) -> Contents | None:
    """Return what the file is if it only stands for another one."""
    if len(head) > _POINTER_BYTES:
        return None
    if found := next((contents for pattern, contents in _POINTERS if pattern.fullmatch(head)), None):
        return found
    target = head.decode("utf-8", "replace")
    if target.split() == [target] and PurePosixPath(target).suffix == PurePosixPath(path).suffix != "":
        return Contents(
            f"a symbolic link to {target} that Git wrote as text",
            "name that file instead, or check out again with: git config core.symlinks true",
        )
    return None


def find_web_page(head: bytes) -> Contents | None:
    """Return that the file is a web page, if it is one."""
    if _WEB_PAGE.match(head.removeprefix(BOM)):
        return Contents("a web page, perhaps one that reports an error", "look at it, then fetch the data again")
    return None


def find_text(head: bytes) -> Contents | None:
    """Return that the file is plain text, if it is; it is asked of files whose name says that they are compressed."""
    if _likeness(head, "utf-8") < _TEXT_SHARE:
        return None
    return Contents("plain text", "take the suffix of the compression off its name")


def find_readable(head: bytes) -> str | None:
    """Return the compression or the format that surely begins with ``head``."""
    packed = (entry.name for entry in COMPRESSIONS.values() if head.startswith(entry.long_magic or entry.magics))
    plain = (e.name for e in FORMATS.values() if e.magic and head.startswith(e.magic, e.magic_at))
    return next(packed, None) or next(plain, None)


def find_magic(head: bytes) -> Contents | None:
    """Return what surely begins with ``head``, if it is no text."""
    if name := find_readable(head):
        suffix = (COMPRESSIONS.get(name) or FORMATS[name]).suffixes[0]
        other = "unpack it" if name in COMPRESSIONS else f"say so with --format {name}"
        return Contents(f"{name} data", f"let its name end in {suffix}, or {other}")
    name = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), None)
    return Contents(name, "unpack or convert it, and name what comes out") if name else None


def find_encoding(head: bytes) -> Contents | None:
    """Return in which encoding that is not UTF-8 the text is, or that it is none, as its NULs show."""
    num_nulls, num_newlines = head.count(0), head.count(b"\n")
    if not head or (not num_nulls and num_newlines):  # UTF-16 has NULs beside its newlines
        return None
    if name := next((name for mark, name in (*_UTF_32, *_UTF_16) if head.startswith(mark)), None):
        return _encoded(f"{name} text", name)
    share = 1 - len(head.translate(None, _CONTROLS)) / len(head)
    has_wide_newlines = num_newlines > 1 and num_newlines in (head.count(b"\n\0"), head.count(b"\0\n"))
    if not num_nulls or (share < _BINARY_SHARE and _likeness(head, "utf-8") and not has_wide_newlines):
        return None
    # The first bytes of the characters of a script are few, the second ones many.
    in_16_bits = "UTF-16LE" if len(set(head[1::2])) <= len(set(head[::2])) else "UTF-16BE"
    names = ("UTF-32LE", "UTF-32BE", in_16_bits)
    if name := next((name for name in names if _likeness(head, name) >= _TEXT_SHARE), None):
        return _encoded(f"{name[:6]} text without a byte order mark", name)
    if share < _BINARY_SHARE:
        return None
    return Contents(f"binary data ({share:.0%} control characters)", "give text, or leave the file out")


def _encoded(description: str, name: str) -> Contents:
    return Contents(description, f"convert it with: iconv -f {name} -t UTF-8")


def _likeness(head: bytes, encoding: str) -> float:
    """Return the share of visible characters in ``head``, whose last one may be cut; 0 if it is not in ``encoding``."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return 0.0
    return sum(sign.isspace() or unicodedata.category(sign)[0] != "C" for sign in text) / max(len(text), 1)
