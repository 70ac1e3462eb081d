"""The records of a task: to learn from, to choose the epoch by, to be scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import xxhash

from kexue_train.downstream.finetune.tasks.task import SupervisedTask
from kexue_train.downstream.task_files import Record, read_data_file
from kexue_train.foundation.errors import EvaluationError

_HELD_OUT_OF = 10  # every tenth text
_HELD_OUT, _CHOSEN = 1, 2  # two independent hashes


@dataclass(frozen=True)
class Splits:
    """Records by use."""

    train: list[Record]
    dev: list[Record]
    test: list[Record] | None
    """None: the task has none, and the scores are those of ``dev``."""
    all_train: list[Record]
    """What ``train`` was chosen from; says which labels there are."""
    is_dev_held_out: bool
    """Whether ``dev`` is a part of the training file."""

    @property
    def scored(self) -> dict[str, list[Record]]:
        """``dev``, and ``test`` if there is one."""
        return {"dev": self.dev} | ({} if self.test is None else {"test": self.test})

    @property
    def by_name(self) -> dict[str, list[Record]]:
        """``train``, ``dev``, and ``test`` if there is one."""
        return {"train": self.train} | self.scored


def read_splits(
    task: SupervisedTask, folder: Path, text_of: Callable[[Record], str], *, max_train: int | None, max_eval: int | None
) -> Splits:
    """Read the files of ``task``.

    Whatever is chosen is chosen by a hash, so that it depends on no seed and not on the order of the file.

    Args:
        task: Names the files.
        folder: Folder that their paths start from.
        text_of: The text of a record; without a dev file, records with equal texts are held out together.
        max_train: Learn from so many records at most.
        max_eval: Score so many records of each file at most.

    Raises:
        EvaluationError: If a file is missing, damaged or empty, or leaves nothing to hold out.
    """
    train = read_data_file(folder / task.train)
    if task.dev is not None:
        dev = read_data_file(folder / task.dev)
    else:
        is_dev = [_hash(text_of(record), _HELD_OUT) % _HELD_OUT_OF == 0 for record in train]
        dev = [record for record, held_out in zip(train, is_dev, strict=True) if held_out]
        train = [record for record, held_out in zip(train, is_dev, strict=True) if not held_out]
        if not dev or not train:
            raise EvaluationError(
                f"{folder / task.train}: {len(train) + len(dev)} records are too few to hold some out; name a dev file"
            )
    test = read_data_file(folder / task.test) if task.test is not None else None
    return Splits(
        train=choose_records(train, max_train),
        dev=choose_records(dev, max_eval),
        test=None if test is None else choose_records(test, max_eval),
        all_train=train,
        is_dev_held_out=task.dev is None,
    )


def choose_records(records: list[Record], most: int | None) -> list[Record]:
    """Return at most so many records, chosen by a hash of their values, in their order; all of them for None."""
    if most is None or len(records) <= most:
        return records
    keys = [_hash(json.dumps(record.values, sort_keys=True), _CHOSEN) for record in records]
    chosen = sorted(range(len(records)), key=lambda i: (keys[i], i))[:most]
    return [records[i] for i in sorted(chosen)]


def _hash(text: str, seed: int) -> int:
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"), seed=seed)
