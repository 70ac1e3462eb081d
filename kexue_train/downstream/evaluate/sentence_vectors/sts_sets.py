"""Sets of sentence pairs with a score of similarity: which there are, and their records."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field

from kexue_train.downstream.task_files import Record, read_catalogue, read_data_file
from kexue_train.foundation.config import Config
from kexue_train.foundation.errors import ConfigError, EvaluationError


class StsSet(Config):
    """One set in the catalogue."""

    language: str = ""
    """Of the sentences; empty if it is not said."""
    files: tuple[str, ...] = Field(default=("test.jsonl.gz",), min_length=1)
    """What is scored, in the set's folder; a name may hold ``*``."""
    published: dict[str, float] = Field(default_factory=dict)
    """Spearman correlations from elsewhere, of other models, times 100."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of a set, every different sentence once."""

    sentences: list[str]
    indices: npt.NDArray[np.int64]
    """(n, 2): where the two sentences of a pair are in ``sentences``."""
    scores: npt.NDArray[np.float64]
    """(n,): the more, the more alike."""

    @classmethod
    def of(cls, records: Sequence[Record]) -> Pairs:
        """Collect pairs from records with ``text_a``, ``text_b`` and a number ``score`` or ``label``.

        Raises:
            EvaluationError: If a record lacks one of them.
        """
        index_of: dict[str, int] = {}
        indices = [
            [index_of.setdefault(record.text(key), len(index_of)) for key in ("text_a", "text_b")] for record in records
        ]
        return cls(list(index_of), np.array(indices, np.int64), np.array([_score(record) for record in records]))


def catalogue() -> dict[str, StsSet]:
    """Return the known sets by name, in the order of ``sts_sets.yaml``."""
    return read_catalogue(__package__, "sts_sets.yaml", lambda entry: StsSet.parse(entry.values, where=entry.where))


def choose_sets(names: Sequence[str], data: Path) -> dict[str, StsSet]:
    """Return the sets by these names, known ones or folders of ``data``; by default the known ones that are there.

    Raises:
        EvaluationError: If ``data`` is no folder or holds none of the sets.
        ConfigError: If a name is neither known nor a folder.
    """
    if not data.is_dir():
        raise EvaluationError(f"{data}: no such folder; give the one that holds the sets, one folder per set")
    known = catalogue()
    if not names:
        found = {name: entry for name, entry in known.items() if (data / name).is_dir()}
        if not found:
            raise EvaluationError(f"{data}: holds none of the sets {', '.join(known)}; name others by --set")
        return found
    for name in names:
        if name not in known and not (data / name).is_dir():
            near = difflib.get_close_matches(name, known, 1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}, and folders of {data}"
            raise ConfigError(f"--set {name!r} is not known{hint}")
    return {name: known.get(name, StsSet()) for name in names}


def read_set(name: str, entry: StsSet, data: Path) -> Pairs:
    """Return the pairs of a set that are scored.

    Raises:
        EvaluationError: If a file is missing, empty or wrong.
    """
    return Pairs.of([record for pattern in entry.files for record in _records(data / name, pattern)])


def set_files(names: Sequence[str], data: Path) -> list[Path]:
    """Return the files that the sets read."""
    return [
        path
        for name, entry in choose_sets(names, data).items()
        for pattern in entry.files
        for path in sorted((data / name).glob(pattern))
    ]


def _records(folder: Path, pattern: str) -> list[Record]:
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise EvaluationError(f"{folder / pattern}: no such file; give the folder that holds {folder.name!r}")
    return [record for path in paths for record in read_data_file(path)]


def _score(record: Record) -> float:
    return record.number("score" if "score" in record.values else "label")
