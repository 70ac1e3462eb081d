"""The part of the second pass that near duplicates need: leaves out those of a shard, and keeps them if asked to."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.arrow_arrays import to_arrow
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.write_behind import WriteBehindFile, new_file
from kexue_train.shuffle.keys import hash_rows
from kexue_train.shuffle.near.removal import Verdicts

REASON = "near duplicate"
FILES_NAME = "files.json"
"""The names of the input files by number, without credentials."""
_SHOWN_CHARS = 200


@dataclass(frozen=True, slots=True)
class Shown:
    """A document that the report shows."""

    cluster: int
    """Rank of its cluster by size, from 0 on."""
    is_kept: bool
    file: int
    """Its number among the inputs."""
    position: int
    text: str
    """The beginning."""


def kept_records_path(folder: Path, shard: int) -> Path:
    """Return the file of the near duplicates that were left out of a shard, if they are kept."""
    return folder / f"shard-{shard:06d}.dropped.jsonl"


class LeaveOut:
    """Judges the rows of one shard; a context that ends with the shard."""

    def __init__(self, folder: Path, shard: int, *, keep: bool) -> None:
        self._folder, self._shard, self._keep = folder, shard, keep
        self._verdicts = Verdicts.read(folder, shard)
        self._files = _read_files(folder)
        self._is_found = np.zeros(len(self._verdicts.entries), bool)
        self._stack = ExitStack()
        self._records: WriteBehindFile | None = None
        self.shown: list[Shown] = []

    def __enter__(self) -> Self:
        if self._keep:
            self._records = self._stack.enter_context(new_file(kept_records_path(self._folder, self._shard)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        missing = int((~self._is_found & (self._verdicts.entries["copy"] == 0)).sum())
        if error is None and missing:
            raise ArtifactError(
                f"shard {self._shard} lacks {missing} of the documents that were compared with others in the first "
                "pass: data was damaged on the way, so nothing is published; check disk and memory of the machine, "
                "delete the unfinished output, then run it again"
            )

    def judge(self, texts: pa.LargeBinaryArray) -> npt.NDArray[np.bool_]:
        """Return which of n documents stay, shape (n,)."""
        found = self._verdicts.find(hash_rows(texts))
        rows = np.flatnonzero(found >= 0)
        entries = self._verdicts.entries[found[rows]]
        is_first = ~self._is_found[found[rows]]
        self._is_found[found[rows]] = True
        is_removed = entries["is_removed"] > 0
        self._show(texts, rows[is_first], entries[is_first])
        if self._records is not None:
            self._write(self._records, texts.take(to_arrow(rows[is_removed])), entries[is_removed])
        stays = np.ones(len(texts), bool)
        stays[rows[is_removed]] = False
        return stays

    def _show(self, texts: pa.LargeBinaryArray, rows: npt.NDArray[np.int64], entries: npt.NDArray[np.void]) -> None:
        chosen = (entries["shown"] > 0) & (entries["copy"] == 0)
        for row, entry in zip(rows[chosen].tolist(), entries[chosen], strict=True):
            self.shown.append(
                Shown(
                    cluster=int(entry["shown"]) - 1,
                    is_kept=not entry["is_removed"],
                    file=int(entry["file"]),
                    position=int(entry["position"]),
                    text=_begin(texts[row].as_buffer()),
                )
            )

    def _write(self, records: WriteBehindFile, texts: pa.LargeBinaryArray, entries: npt.NDArray[np.void]) -> None:
        for i, entry in enumerate(entries):
            record: dict[str, Any] = {
                "file": self._files[int(entry["file"])],
                "position": int(entry["position"]),
                "reason": REASON,
                "kept": {"file": self._files[int(entry["kept_file"])], "position": int(entry["kept_position"])},
                "text": texts[i].as_py().decode("utf-8", "backslashreplace"),
            }
            records.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def _begin(text: pa.Buffer) -> str:
    data: bytes = text[: 4 * _SHOWN_CHARS].to_pybytes()
    return data.decode("utf-8", "ignore")[:_SHOWN_CHARS]


@lru_cache(maxsize=1)
def _files_of(path: str, _: int) -> list[str]:
    names: list[str] = json.loads(Path(path).read_text(encoding="utf-8"))
    return names


def _read_files(folder: Path) -> list[str]:
    path = folder / FILES_NAME
    return _files_of(str(path), path.stat().st_mtime_ns)
