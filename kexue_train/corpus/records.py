"""What is read from an input and what a reader yields: accepted texts with their positions, and rejected records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kexue_train.foundation.arrow_arrays import data_of, from_mask, offsets_of, to_arrow, to_mask

Document = Literal["line", "block", "file"]
"""What one document of a text file is: a line; the lines between two blank ones; the whole file."""
MAX_RECORD_BYTES = 64 * 2**20
"""A longer record is rejected: it bounds the memory of a reader, whatever the file holds."""
RAW_LIMIT_BYTES = 64 * 2**10
"""How much of a rejected record is kept."""

PART_BITS = 40
"""In inputs of several parts (the shards of a data set, the members of an archive), a position is
``part << PART_BITS | position in the part``."""

_MAY_BEGIN_SPACE = np.zeros(256, bool)
_MAY_BEGIN_SPACE[[*range(0x21), 0xC2, 0xE1, 0xE2, 0xE3]] = True
"""By the first byte of a character in UTF-8, whether it may be white space."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What is taken from a record, and what a record is. Small, since it travels to workers."""

    text_keys: tuple[str, ...] = ("text",)
    """Keys or columns of the text, joined by newlines. Dots go into objects, unless a key has that very name."""
    keep: tuple[str, ...] = ()
    """Keys or columns whose values go along in ``RecordBlock.extras``."""
    rejects_unread: bool = False
    """A record with other keys than those is rejected, since all are to be kept."""
    document: Document = "line"
    """Text files only."""
    raw: bool = False
    """Text files only: every line is a record, whatever its bytes, as if a file were a list of byte strings."""
    line_end: bytes = b"\n"
    """With ``raw`` only: the byte that ends a line."""
    block_bytes: int = 16 * 2**20
    """About how much is read at a time; changes the size of the blocks and nothing else."""
    memory_bytes: int = 2**30
    """How much may be held to read a part of a file that cannot be read in smaller parts: a page of Parquet, a
    compressed record batch of Arrow. A file with a larger part is refused."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One record that cannot be used."""

    position: int
    """Like ``RecordBlock.positions``."""
    reason: str
    """A few words, the same for every record of the kind; rejected records are counted by it."""
    detail: str
    """What is wrong with this one."""
    raw: bytes
    """The record unchanged, at most ``RAW_LIMIT_BYTES`` of it."""


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """Some consecutive records of one input."""

    positions: npt.NDArray[np.uint64]
    """Shape (n,), increasing, and unique within the input: the byte offset of the record in a plain line file; its line
    number from 0 in a compressed one; else its number from 0 among rows, elements or records (blank and rejected ones
    count); with the number of the part before it where an input has parts, see ``PART_BITS``."""
    texts: pa.LargeStringArray | pa.LargeBinaryArray
    """The n accepted texts: valid UTF-8, not blank; with ``ReadOptions.raw`` any bytes, as a binary array."""
    rejected: list[Rejected] = field(default_factory=list)
    blank: int = 0
    """Empty lines and texts of white space only, which were skipped."""
    extras: pa.LargeBinaryArray | None = None
    """The kept values of each text, as JSON (see ``encode_extras``); None if nothing is to be kept."""
    unread: frozenset[str] = frozenset()
    """Keys or columns of the input that are neither text nor kept, as far as it is read."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Reason -> how many records were left out as no documents by the rules of the format, such as redirects of a wiki:
    no fault of theirs, unlike that of rejected ones."""


def make_block(
    positions: npt.NDArray[np.uint64],
    texts: pa.LargeStringArray,
    rejected: Sequence[Rejected] = (),
    *,
    extras: pa.LargeBinaryArray | None = None,
    blank: int = 0,
    is_utf8: bool = False,
    unread: frozenset[str] = frozenset(),
) -> RecordBlock:
    """Sort out texts that are blank or not UTF-8.

    Args:
        positions: Shape (n,).
        texts: n texts, whose bytes need not be UTF-8 unless ``is_utf8``.
        rejected: Records refused before, in any order.
        extras: n values.
        blank: Records found blank before.
        is_utf8: Whether the texts are known to be UTF-8.
        unread: See ``RecordBlock.unread``.
    """
    found = list(rejected)
    if not is_utf8:
        is_good, bad = _check_utf8(positions, texts)
        found += bad
        if bad:
            positions, texts, extras = _select(is_good, positions, texts, extras)
    is_blank = _are_blank(texts)
    num_blank = int(is_blank.sum())
    if num_blank:
        positions, texts, extras = _select(~is_blank, positions, texts, extras)
    found.sort(key=lambda entry: entry.position)
    return RecordBlock(positions, texts, found, num_blank + blank, extras, unread)


def _are_blank(texts: pa.LargeStringArray) -> npt.NDArray[np.bool_]:
    """Return which texts are empty or white space alone, shape (n,)."""
    if not len(texts):
        return np.zeros(0, bool)
    offsets, octets = offsets_of(texts), np.frombuffer(data_of(texts), np.uint8)
    is_blank: npt.NDArray[np.bool_] = offsets[1:] == offsets[:-1]
    begun = np.flatnonzero(~is_blank)
    # Few texts begin with white space; only these are looked at whole.
    begun = begun[_MAY_BEGIN_SPACE[octets[offsets[begun]]]]
    if len(begun):
        is_blank[begun] = from_mask(pc.utf8_is_space(texts.take(to_arrow(begun))))
    return is_blank


def reject(position: int, reason: str, detail: str, raw: bytes) -> Rejected:
    """Return the refusal of the record ``raw``, which may be given whole."""
    return Rejected(int(position), reason, detail, bytes(raw[:RAW_LIMIT_BYTES]))


def too_long(position: int, length: int, raw: bytes) -> Rejected:
    """Return the refusal of a record of ``length`` bytes, of which ``raw`` is the beginning."""
    return reject(position, f"record longer than {MAX_RECORD_BYTES >> 20} MiB", f"{length} bytes", raw)


def wrong_width(position: int, num_fields: int, num_columns: int, raw: bytes) -> Rejected:
    """Return the refusal of a row of a table that has too few or too many fields."""
    return reject(position, "wrong number of fields", f"{num_fields} fields, the header has {num_columns}", raw)


def holds_nul(position: int, raw: bytes) -> Rejected | None:
    """Return the refusal of ``raw``, a piece of a text file, if it holds what no text does."""
    at = raw.find(b"\0")
    if at < 0:
        return None
    return reject(position, "NUL byte", f"at byte {at} of the record: binary data, or text in another encoding", raw)


def not_utf8(position: int, raw: bytes) -> Rejected | None:
    """Return the refusal of ``raw`` if it is not UTF-8."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return reject(position, "not UTF-8", describe_bad_byte(error), raw)
    return None


def describe_bad_byte(error: UnicodeDecodeError, offset: int = 0) -> str:
    """Return which byte of a record is no UTF-8; what was decoded began at byte ``offset`` of it."""
    return f"byte 0x{error.object[error.start]:02x} at byte {offset + error.start} of the record: {error.reason}"


def _check_utf8(
    positions: npt.NDArray[np.uint64], texts: pa.LargeStringArray
) -> tuple[npt.NDArray[np.bool_], list[Rejected]]:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raw = texts.view(pa.large_binary()).to_pylist()
        bad = [not_utf8(position, text) for position, text in zip(positions.tolist(), raw, strict=True)]
        return np.array([entry is None for entry in bad], dtype=bool), [entry for entry in bad if entry]
    return np.ones(len(texts), dtype=bool), []


def _select(
    chosen: npt.NDArray[np.bool_],
    positions: npt.NDArray[np.uint64],
    texts: pa.LargeStringArray,
    extras: pa.LargeBinaryArray | None,
) -> tuple[npt.NDArray[np.uint64], pa.LargeStringArray, pa.LargeBinaryArray | None]:
    mask = to_mask(chosen)
    return positions[chosen], texts.filter(mask), None if extras is None else extras.filter(mask)
