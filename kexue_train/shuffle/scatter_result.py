"""What a scatter task found and where it put it; its JSON form is the done marker of the task."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from kexue_train.shuffle.dropped_samples import Samples
from kexue_train.shuffle.near.signing import SignedFiles
from kexue_train.shuffle.spill import SpillIndex


@dataclass(slots=True)
class FileCounts:
    """What a task found in one input file."""

    rows: int = 0
    """Accepted records that passed the filters."""
    blank: int = 0
    checksum: int = 0
    """Sum of the hashes of those rows modulo 2¹²⁸."""
    text_bytes: int = 0
    longest: int = 0
    """Bytes of the longest text."""
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    """Documents that a filter dropped, by reason."""
    header: str = ""
    """The lines at the beginning of the file that stay first, with their ends, as hexadecimal digits."""
    shard_rows: list[int] = field(default_factory=list)
    """``rows`` by the shard they go to."""


@dataclass(slots=True)
class ScatterResult:
    """What a scatter task did."""

    files: dict[int, FileCounts] = field(default_factory=dict)
    """By number of the input file."""
    offered: int = 0
    """Rows offered to the shuffle: the accepted ones, as often as the weight of their file says."""
    offered_checksum: int = 0
    duplicates: int = 0
    """Offered rows skipped here already, since an equal text was near."""
    duplicates_checksum: int = 0
    sampled_out: int = 0
    """Offered rows that cannot be among the first ones asked for."""
    sampled_out_checksum: int = 0
    unread_keys: list[str] = field(default_factory=list)
    """Keys or columns of the inputs that are neither text nor kept, sorted."""
    dropped_samples: Samples = field(default_factory=dict)
    """Some of the documents that filters dropped, by rule."""
    tickets: dict[int, list[int]] = field(default_factory=dict)
    """Rows by ticket and shard."""
    machine: str = ""
    boot: str = ""
    """Which start of that machine; after another, what was not yet on disk is lost."""
    spill: str = ""
    """Name of the spill file in its folder."""
    index: SpillIndex = field(default_factory=lambda: SpillIndex(0, 0, 0))
    signed: SignedFiles | None = None
    """What lies beside the spill file for the search of near duplicates."""

    def to_json(self) -> str:
        """Return one line of JSON."""
        values = _fields(self) | {"index": _fields(self.index), "signed": self.signed and self.signed.to_json()}
        values["files"] = {number: _fields(entry) for number, entry in self.files.items()}
        for entry in (values, *values["files"].values()):
            entry |= {name: f"{value:032x}" for name, value in entry.items() if name.endswith("checksum")}
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what ``to_json`` wrote."""
        values: dict[str, Any] = json.loads(text)
        for entry in (values, *values["files"].values()):
            entry |= {name: int(value, 16) for name, value in entry.items() if name.endswith("checksum")}
        for entry in values["files"].values():
            entry |= {name: Counter(entry[name]) for name in ("rejected", "dropped")}
        values["files"] = {int(number): FileCounts(**entry) for number, entry in values["files"].items()}
        values["tickets"] = {int(ticket): rows for ticket, rows in values["tickets"].items()}
        values["index"] = SpillIndex(**values["index"])
        values["signed"] = SignedFiles.from_json(values["signed"]) if values.get("signed") else None
        return cls(**values)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}  # asdict breaks a Counter


def marker_path(folder: Path, index: int) -> Path:
    """Return the ``ScatterResult`` of a task; exists once the task is done."""
    return folder / f"task-{index:06d}.json"


def spill_path(folder: str, spill_folder: str | None, result: ScatterResult) -> Path:
    """Return where the spill file lies: in ``folder``, or in ``spill_folder`` on the machine that wrote it."""
    return Path(spill_folder, result.machine, result.spill) if spill_folder else Path(folder, result.spill)
