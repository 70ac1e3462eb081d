"""What a reader yields: blocks of accepted texts with their positions, and the records it had to refuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MAX_RECORD_BYTES = 64 * 2**20
"""A longer record is rejected: it bounds the memory of a reader, whatever the file holds."""
RAW_LIMIT_BYTES = 64 * 2**10
"""How much of a rejected record is kept."""


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
    """The record as it stands in the file, at most ``RAW_LIMIT_BYTES`` of it."""


@dataclass(frozen=True, slots=True)
class RecordBlock:
    """Some consecutive records of one input."""

    positions: npt.NDArray[np.uint64]
    """Shape (n,): byte offset of the record in a plain line file; else its number, from 0 (every line counts)."""
    texts: pa.LargeStringArray
    """The n accepted texts: valid UTF-8, not blank."""
    rejected: list[Rejected] = field(default_factory=list)
    blank: int = 0
    """Empty lines and texts of white space only, which were left out."""


def make_block(
    positions: npt.NDArray[np.uint64], texts: pa.LargeStringArray, rejected: Sequence[Rejected] = ()
) -> RecordBlock:
    """Sort out texts that are blank or (``texts`` may be unchecked) not UTF-8; shapes (n,) and n."""
    found = list(rejected)
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        bad = [_find_bad_utf8(position, raw) for position, raw in zip(positions, _raw(texts), strict=True)]
        found += [entry for entry in bad if entry]
        good = np.array([entry is None for entry in bad], dtype=bool)
        positions, texts = positions[good], texts.filter(pa.array(good))
    blank = pc.or_(pc.utf8_is_space(texts), pc.equal(pc.binary_length(texts), 0)).to_numpy(zero_copy_only=False)
    num_blank = int(blank.sum())
    if num_blank:
        positions, texts = positions[~blank], texts.filter(pa.array(~blank))
    return RecordBlock(positions, texts, sorted(found, key=lambda entry: entry.position), num_blank)


def too_long(position: int, length: int, raw: bytes) -> Rejected:
    """The refusal of a record of ``length`` bytes."""
    limit = f"{MAX_RECORD_BYTES >> 20} MiB"
    return Rejected(int(position), f"record longer than {limit}", f"{length} bytes", raw[:RAW_LIMIT_BYTES])


def _raw(texts: pa.LargeStringArray) -> list[bytes]:
    return texts.view(pa.large_binary()).to_pylist()  # type: ignore[no-any-return]  # pyarrow is untyped


def _find_bad_utf8(position: int, raw: bytes) -> Rejected | None:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        detail = f"byte 0x{raw[error.start]:02x} at byte {error.start} of the record: {error.reason}"
        return Rejected(int(position), "not UTF-8", detail, raw[:RAW_LIMIT_BYTES])
    return None
