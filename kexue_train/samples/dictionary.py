"""Word lists in jieba's form: UTF-8, per line ``word [frequency] [tag]``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kexue_train.foundation.artifacts import write_atomic
from kexue_train.foundation.errors import ArtifactError


class Entry(NamedTuple):
    """One word."""

    word: str
    frequency: int | None = None
    """None: as high as needed for jieba to find the word."""
    tag: str | None = None


def read_dictionary(path: Path) -> list[Entry]:
    """Read a word list; blank lines are left out.

    Raises:
        ArtifactError: Names the file and the line that is not of the form above.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ArtifactError(f"{path}: the dictionary cannot be read ({error.strerror}); check the path") from None
    return [entry for number, line in enumerate(lines, 1) for entry in _parse(line, f"{path}:{number}")]


def write_dictionary(path: Path, frequencies: Mapping[str, int]) -> None:
    """Write words with their frequencies, the most frequent first."""
    ranked = sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))
    write_atomic(path, "".join(f"{word} {frequency}\n" for word, frequency in ranked))


def _parse(line: bytes, where: str) -> Iterator[Entry]:
    try:
        fields = line.decode("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{where}: not UTF-8 ({error.reason}); convert the dictionary to UTF-8") from None
    if not fields:
        return
    word, *rest = fields
    frequency = int(rest.pop(0)) if rest and rest[0].isdecimal() else None
    tag = rest.pop(0) if rest and rest[0].isalpha() else None
    if rest:
        raise ArtifactError(
            f"{where}: {' '.join(fields)!r} is not of the form 'word [frequency] [tag]', such as '图书馆 120 n'; "
            "the frequency is a whole number, the tag is letters"
        )
    yield Entry(word, frequency, tag)
