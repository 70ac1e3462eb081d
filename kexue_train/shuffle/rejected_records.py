"""Records that a scatter task does not pass on, kept as JSON Lines: rejected records and dropped documents."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.corpus.filters import REASONS
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.readers import describe_position
from kexue_train.corpus.records import RecordBlock, Rejected
from kexue_train.foundation.arrow_arrays import to_arrow
from kexue_train.foundation.credentials import without_credentials
from kexue_train.foundation.errors import CorpusError
from kexue_train.foundation.write_behind import new_file

REJECTED, DROPPED = "rejected", "dropped"
"""The folders of the finished artifact; each holds a ``records.jsonl``."""


class RejectedRecords:
    """The files of one attempt at a task, whose spill file is called ``spill``."""

    def __init__(self, folder: Path, spill: str) -> None:
        self._paths = {kind: records_path(folder, spill, kind) for kind in (REJECTED, DROPPED)}

    def keep_rejected(self, entries: Sequence[Rejected], source: Source) -> None:
        """Keep rejected records, each unchanged."""
        self._append(REJECTED, (_describe(entry, source) for entry in entries))

    def keep_dropped(self, block: RecordBlock, reasons: npt.NDArray[np.uint8], source: Source) -> None:
        """Keep the documents that have a reason."""
        rows = np.flatnonzero(reasons)
        names = [REASONS[reason - 1] for reason in reasons[rows].tolist()]
        columns = (block.positions[rows].tolist(), names, block.texts.take(to_arrow(rows)).to_pylist())
        self._append(
            DROPPED,
            (
                {"file": without_credentials(source.path), "position": position, "reason": name, "text": text}
                for position, name, text in zip(*columns, strict=True)
            ),
        )

    @staticmethod
    def refuse(entry: Rejected, source: Source) -> CorpusError:
        """Return the error that ends a shuffle at a bad record."""
        return CorpusError(
            f"{describe_position(source, entry.position)}: {entry.reason} ({entry.detail}); correct it, or leave such "
            "records out, counted and kept in rejected/, with --on-bad-record skip (shuffle.on_bad_record: skip)"
        )

    def _append(self, kind: str, records: Iterable[dict[str, Any]]) -> None:
        with self._paths[kind].open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def records_path(folder: Path, spill: str, kind: str) -> Path:
    """Return the records of one kind that the attempt that wrote ``spill`` kept aside."""
    return folder / f"{spill}.{kind}.jsonl"


def _describe(entry: Rejected, source: Source) -> dict[str, Any]:
    values = {
        "file": without_credentials(source.path),
        "position": entry.position,
        "reason": entry.reason,
        "detail": entry.detail,
    }
    try:
        return values | {"raw": entry.raw.decode("utf-8")}
    except UnicodeDecodeError:
        return values | {"raw_base64": base64.b64encode(entry.raw).decode("ascii")}


def join_records(parts: Iterable[Path], folder: Path) -> None:
    """Join the records of all parts that exist in ``folder/records.jsonl``; without records, no file."""
    found = [path for path in parts if path.exists() and path.stat().st_size]
    if not found:
        return
    folder.mkdir(exist_ok=True)
    with new_file(folder / "records.jsonl") as out:
        for path in found:
            with path.open("rb") as part:
                while data := part.read(1 << 20):
                    out.write(data)
