"""How the records of an input are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Document = Literal["line", "block", "file"]
"""What one document of a text file is: a line; the lines between two blank ones; the whole file."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What is taken from a record, and what a record is. Small, since it travels to workers."""

    text_keys: tuple[str, ...] = ("text",)
    """Keys or columns of the text, joined by newlines. Dots go into objects, unless a key has that very name."""
    keep: tuple[str, ...] = ()
    """Keys or columns whose values go along in ``RecordBlock.extras``."""
    document: Document = "line"
    """Text files only."""
    raw: bool = False
    """Text files only: every line is a record, whatever its bytes, as if a file were a list of byte strings."""
    block_bytes: int = 16 * 2**20
    """About how much is read at a time; changes the size of the blocks and nothing else."""
